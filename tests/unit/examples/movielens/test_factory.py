"""What of this example goes into its package."""

from pathlib import Path

from examples.movielens.factory import MovieLensPredictFactory
from tests.support.packaged import interned_examples


def test_the_package_holds_the_factory_and_the_model_alone(tmp_path: Path) -> None:
    assert interned_examples(MovieLensPredictFactory, tmp_path) == {
        "examples/movielens/factory.py",
        "examples/movielens/model.py",
    }
