"""What of this example goes into its package."""

from pathlib import Path

from examples.sequence.factory import NextMoviePredictFactory
from tests.support.packaged import interned_examples


def test_the_package_holds_the_factory_and_the_model_alone(tmp_path: Path) -> None:
    assert interned_examples(NextMoviePredictFactory, tmp_path) == {
        "examples/sequence/factory.py",
        "examples/sequence/model.py",
    }
