"""What of this example goes into its package, and which methods it serves."""

from pathlib import Path

from examples.two_tower.factory import TwoTowerPredictFactory
from tests.support.packaged import interned_examples


def test_the_package_holds_the_factory_and_the_model_alone(tmp_path: Path) -> None:
    assert interned_examples(TwoTowerPredictFactory, tmp_path) == {
        "examples/two_tower/factory.py",
        "examples/two_tower/model.py",
    }


def test_three_methods_take_the_batched_input() -> None:
    methods = TwoTowerPredictFactory().qualname_metadata()
    assert {name: method.need_preproc for name, method in methods.items()} == {
        "forward": True,
        "user_embedding": True,
        "item_embedding": True,
    }
