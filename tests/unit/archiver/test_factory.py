"""Finding the classes that the user named, and what is said when they are not there."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.factories.packagers import HousePackager
from tests.support.factories.ranking import RankingPredictFactory
from torchrec_archiver.factory import find_factory, find_packager
from torchrec_handler.errors import BuildError

RANKING = "tests.support.factories.ranking"


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that Python does not look into by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_name_is_imported() -> None:
    assert find_factory(f"{RANKING}:RankingPredictFactory") is RankingPredictFactory
    assert find_packager("tests.support.factories.packagers:HousePackager") is HousePackager


def test_a_class_is_taken_as_it_is() -> None:
    assert find_factory(RankingPredictFactory) is RankingPredictFactory
    assert find_packager(HousePackager) is HousePackager


def test_a_module_of_the_working_directory_is_found(shop: Path) -> None:
    """The console script does not have it on its path, as `python -m` would."""
    (shop / "shop.py").write_text(
        f"from {RANKING} import RankingPredictFactory\n"
        "class ShopPredictFactory(RankingPredictFactory): pass\n"
    )
    assert find_factory("shop:ShopPredictFactory").__name__ == "ShopPredictFactory"


@pytest.mark.parametrize(
    ("find", "option"), [(find_factory, "factory"), (find_packager, "packager")]
)
@pytest.mark.parametrize("name", ["", "shop", "shop:", ":Factory", "shop.Factory"])
def test_a_name_of_another_form_is_refused(
    find: Callable[[str], object], option: str, name: str
) -> None:
    assert error_of(lambda: find(name)) == f"{option}: received {name!r}, expected MODULE:CLASS"


def test_a_module_that_is_not_there_is_named(shop: Path) -> None:
    assert error_of(lambda: find_factory("shop.factory:ShopPredictFactory")) == (
        f"factory: 'shop.factory' cannot be imported from {shop}: No module named 'shop'; "
        "run it in the folder that Python imports the module from, or name that in PYTHONPATH"
    )
    (shop / "shops").mkdir()
    (shop / "shops" / "factories.py").touch()
    assert error_of(lambda: find_factory("shop.factory:ShopPredictFactory")) == (
        f"factory: 'shop.factory' cannot be imported from {shop}: No module named 'shop'; "
        "did you mean shops?"
    )
    assert error_of(lambda: find_factory("shops.factory:ShopPredictFactory")) == (
        f"factory: 'shops.factory' cannot be imported from {shop}: "
        "No module named 'shops.factory'; did you mean shops.factories?"
    )


def test_a_file_in_place_of_a_module_is_told_as_a_module() -> None:
    assert error_of(lambda: find_factory("shop/factory.py:ShopPredictFactory")) == (
        "factory: received the file 'shop/factory.py', expected MODULE:CLASS; "
        "did you mean shop.factory:ShopPredictFactory?"
    )


def test_what_a_module_itself_lacks_is_named(shop: Path) -> None:
    (shop / "shop.py").write_text("import no_such_library\n")
    assert error_of(lambda: find_factory("shop:ShopPredictFactory")) == (
        f"factory: 'shop' cannot be imported from {shop}: No module named 'no_such_library'"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("class\n", "SyntaxError: invalid syntax (shop.py, line 1)"),
    ],
)
def test_what_a_module_raises_is_said(shop: Path, source: str, reason: str) -> None:
    (shop / "shop.py").write_text(source)
    assert error_of(lambda: find_packager("shop:ShopPackager")) == (
        f"packager: importing 'shop' raised {reason}"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RankingFactory", "did you mean RankingPredictFactory?"),
        (
            "DENSE",
            (
                "its classes are Ranking, RankingPredictModule, RankingPredictFactory, "
                "MetaRankingPredictFactory"
            ),
        ),
        ("Ranking.forward", "did you mean Ranking?"),
    ],
)
def test_a_class_that_is_not_there_is_named(name: str, hint: str) -> None:
    assert error_of(lambda: find_factory(f"{RANKING}:{name}")) == (
        f"factory: module '{RANKING}' has no class {name!r}; {hint}"
    )


def test_a_class_of_another_kind_is_refused() -> None:
    name = f"{RANKING}:RankingPredictModule"
    assert error_of(lambda: find_factory(name)) == (
        f"factory: {name} is not a torchrec.inference.modules.PredictFactory; "
        "did you mean RankingPredictFactory?"
    )
    assert error_of(lambda: find_packager(name)) == (
        f"packager: {name} is not a torchrec.inference.model_packager.PredictFactoryPackager"
    )


def test_an_instance_in_place_of_a_class_is_refused() -> None:
    factory: Any = RankingPredictFactory()
    assert error_of(lambda: find_factory(factory)) == (
        f"factory: {factory} is not a torchrec.inference.modules.PredictFactory"
    )
    packager: Any = HousePackager()
    assert error_of(lambda: find_packager(packager)) == (
        f"packager: {packager} is not a torchrec.inference.model_packager.PredictFactoryPackager"
    )


def test_a_factory_of_the_running_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package would hold the whole script, and what it imports: this archiver too."""
    monkeypatch.setattr(RankingPredictFactory, "__module__", "__main__")
    assert error_of(lambda: find_factory(RankingPredictFactory)) == (
        "factory: RankingPredictFactory is defined in the script that runs, which would be packed "
        "whole; move it to a module"
    )
