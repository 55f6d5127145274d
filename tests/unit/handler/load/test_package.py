"""Opening a package: its factory, its configs, and what is said when it cannot be opened."""

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.package.package_exporter import PackageExporter
from torchrec.inference.model_packager import LOADER_CODE

from tests.support.factories.packaged import ConfiguredPredictFactory, Scale
from tests.support.factories.packagers import LOADER
from tests.support.factories.ranking import RankingPredictFactory
from torchrec_archiver import DefaultPackager
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.package import open_package


def pack(
    folder: Path,
    *,
    factory: type[RankingPredictFactory] = RankingPredictFactory,
    configs: Mapping[str, Any] | None = None,
    loader_code: str = LOADER_CODE,
    packager: type[DefaultPackager] = DefaultPackager,
) -> Path:
    path = folder / "predict_factory.pt"
    packager.save_predict_factory(factory, dict(configs or {}), path, {}, loader_code=loader_code)
    return path


def pack_source(
    folder: Path, source: str, packager: type[DefaultPackager] = DefaultPackager
) -> Path:
    """A package whose factory's module is a source text, which need not run here."""
    path = folder / "predict_factory.pt"
    with PackageExporter(str(path)) as exporter:
        packager.set_extern_modules(exporter)
        exporter.intern("**")
        exporter.save_source_string("shop", source)
        exporter.save_source_string(
            "__module_loader", "import shop\nMODULE_FACTORY = shop.ShopPredictFactory\n"
        )
    return path


def error_of(path: Path) -> str:
    with pytest.raises(FactoryError) as caught:
        open_package(path)
    return re.sub(r"<torch_package_\d+>", "<torch_package>", str(caught.value))


def test_a_package_gives_an_instance_of_its_factory(tmp_path: Path) -> None:
    factory = open_package(pack(tmp_path)).factory
    assert type(factory).__name__ == "RankingPredictFactory"
    assert type(factory).__module__.startswith("<torch_package_")
    assert factory.result_metadata() == "dict_of_tensor"


def test_the_loader_code_decides_how_the_factory_is_made(tmp_path: Path) -> None:
    factory = open_package(pack(tmp_path, loader_code=LOADER)).factory
    assert factory.made_by == "my loader"


def test_configs_are_unpickled_as_classes_of_the_package(tmp_path: Path) -> None:
    package = open_package(
        pack(tmp_path, factory=ConfiguredPredictFactory, configs={"scale.pkl": Scale(2.0)})
    )
    config = package.load_config("scale.pkl")
    assert config.factor == 2
    assert type(config) is not Scale


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    package = open_package(pack(tmp_path, configs={"scale.pkl": {}}))
    with pytest.raises(FactoryError) as caught:
        package.load_config("plan.pkl")
    assert str(caught.value) == (
        "package: loading the config 'plan.pkl' asks for 'plan.pkl', a config that the package "
        "does not hold; give it with --config"
    )


def test_a_file_that_is_no_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predict_factory.pt"
    path.write_bytes(b"not a zip file")
    assert error_of(path) == (
        "predict_factory.pt: not a torch package (PytorchStreamReader failed reading zip archive: "
        "not a ZIP archive. This is an internal miniz error. If you are seeing this error, there "
        "is a high likelihood that your checkpoint file is corrupted. This can happen if the "
        "checkpoint was not saved properly, was transferred incorrectly, or the file was modified "
        "after saving.)"
    )


def test_a_checkpoint_in_place_of_the_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    assert error_of(path).startswith("weights.pt: not a torch package (")
    assert "extern_modules" in error_of(path)


def test_a_package_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predict_factory.pt"
    with PackageExporter(str(path)) as exporter:
        exporter.save_text("notes", "readme.txt", "nothing")
    assert error_of(path) == (
        "predict_factory.pt: a torch package without __module_loader; "
        "make it with PredictFactoryPackager.save_predict_factory"
    )


def test_an_extern_module_that_the_worker_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the package was made."""
    (tmp_path / "house_library.py").write_text("FACTOR = 3\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Packager(DefaultPackager):
        @classmethod
        def set_extern_modules(cls, pe: PackageExporter) -> None:
            pe.extern("house_library")

    path = pack_source(tmp_path, "import house_library\n", Packager)
    monkeypatch.undo()
    sys.modules.pop("house_library", None)
    assert error_of(path) == (
        "predict_factory.pt: making the factory needs the extern module 'house_library', which "
        "this worker lacks; install it, list it in --requirements-file, or let the packager "
        "intern it"
    )


def test_what_an_extern_module_itself_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "house_library.py").write_text("import base_library\n")
    (tmp_path / "base_library.py").write_text("")

    class Packager(DefaultPackager):
        @classmethod
        def set_extern_modules(cls, pe: PackageExporter) -> None:
            pe.extern("house_library")

    monkeypatch.syspath_prepend(tmp_path)
    path = pack_source(tmp_path, "import house_library\n", Packager)
    (tmp_path / "base_library.py").unlink()
    for name in ("house_library", "base_library"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    assert error_of(path) == (
        "predict_factory.pt: making the factory needs the extern module 'base_library', which "
        "this worker lacks; install it, list it in --requirements-file, or let the packager "
        "intern it"
    )


def test_a_module_that_the_packager_forgot_is_named(tmp_path: Path) -> None:
    """An import that torch.package cannot see from outside."""
    path = pack_source(tmp_path, "__import__('pa' + 'ckaging')\n")
    assert error_of(path) == (
        "predict_factory.pt: making the factory needs module 'packaging', which the packager "
        "neither interned nor externed"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "",
            "AttributeError: module '<torch_package>.shop' has no attribute 'ShopPredictFactory'",
        ),
        ("def ShopPredictFactory(): raise ValueError('no')", "ValueError: no"),
        (
            (
                "from torchrec.inference.modules import PredictFactory\n"
                "class ShopPredictFactory(PredictFactory):\n"
                "    def result_metadata(self): return 'dict_of_tensor'\n"
            ),
            (
                "TypeError: Can't instantiate abstract class ShopPredictFactory with abstract "
                "methods batching_metadata, create_predict_module, "
                "run_weights_dependent_transformations, run_weights_independent_tranformations"
            ),
        ),
    ],
    ids=["module raises", "no class", "factory raises", "abstract"],
)
def test_a_factory_that_cannot_be_made_says_why(tmp_path: Path, source: str, reason: str) -> None:
    said = error_of(pack_source(tmp_path, source))
    assert said == f"predict_factory.pt: making the factory raised {reason}"


def test_a_dataclass_beside_future_annotations_is_explained(tmp_path: Path) -> None:
    """dataclasses looks its module up in sys.modules, where packaged modules are not."""
    source = (
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Config:\n"
        "    rows: int\n"
    )
    assert error_of(pack_source(tmp_path, source)) == (
        "predict_factory.pt: making the factory raised AttributeError: 'NoneType' object has no "
        "attribute '__dict__'; a dataclass in the package cannot be in a module that says "
        "`from __future__ import annotations`"
    )


def test_what_the_loader_makes_must_be_a_factory(tmp_path: Path) -> None:
    assert error_of(pack_source(tmp_path, "def ShopPredictFactory(): return {}")) == (
        "predict_factory.pt: MODULE_FACTORY made a dict, expected a PredictFactory; it lacks "
        "batching_metadata, batching_metadata_json, create_predict_module, model_inputs_data, "
        "qualname_metadata, qualname_metadata_json, result_metadata, "
        "run_weights_dependent_transformations, run_weights_independent_tranformations"
    )
