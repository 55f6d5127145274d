"""Packing with TorchRec's own packager: what is obeyed, and what is said when it fails."""

import io
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.package.importer import sys_importer
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter
from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from tests.support.factories.packaged import HousePredictFactory, Scale
from tests.support.factories.packagers import (
    LOADER,
    HousePackager,
    LoaderCodePackager,
)
from tests.support.factories.ranking import RankingPredictFactory
from tests.support.factories.simple import EveryInput
from torchrec_archiver import DefaultPackager
from torchrec_archiver.package import read_config, save_package
from torchrec_handler.errors import BuildError
from torchrec_handler.load.package import open_package


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


def save(
    folder: Path,
    *,
    packager: type[PredictFactoryPackager] = DefaultPackager,
    factory: type[PredictFactory] = RankingPredictFactory,
    configs: dict[str, Any] | None = None,
    extra_files: dict[str, Any] | None = None,
    **arguments: Any,
) -> Path:
    path = folder / "predict_factory.pt"
    save_package(packager, factory, configs or {}, extra_files or {}, path, **arguments)
    return path


def records(package: Path) -> list[str]:
    """What a package holds, torch's own notes left out."""
    names = PackageImporter(str(package)).zip_reader.get_all_records()
    return sorted(name for name in names if not name.startswith((".data", "byteorder", "version")))


# The files.


def test_a_pickle_is_read_as_an_object_and_any_other_file_as_text(tmp_path: Path) -> None:
    (tmp_path / "scale.pkl").write_bytes(pickle.dumps(Scale(2.0)))
    (tmp_path / "scale.json").write_text('{"factor": "zwölf"}', encoding="utf-8")
    assert read_config("scale", tmp_path / "scale.pkl") == Scale(2.0)
    assert read_config("scale", tmp_path / "scale.json") == '{"factor": "zwölf"}'


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("c.pkl", b"no pickle", "UnpicklingError: invalid load key, 'n'."),
        ("c.pkl", b"", "EOFError: Ran out of input"),
        (
            "c.pkl",
            b"cboutique.nowhere\nConfig\n.",
            "ModuleNotFoundError: No module named 'boutique'",
        ),
        (
            "c.txt",
            b"\xff",
            (
                "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: "
                "invalid start byte"
            ),
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert error_of(lambda: read_config("scale", path)) == (
        f"config scale: {path} cannot be read: {reason}"
    )


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert error_of(lambda: read_config("scale", tmp_path / "c.pkl")) == (
        f"config scale: {tmp_path / 'c.pkl'} cannot be read: No such file or directory; "
        f"{tmp_path} is empty"
    )
    assert error_of(lambda: read_config("scale", tmp_path)) == (
        f"config scale: {tmp_path} cannot be read: Is a directory"
    )


# What the package holds.


def test_a_package_holds_the_user_s_code_and_no_library(tmp_path: Path) -> None:
    package = save(
        tmp_path,
        factory=HousePredictFactory,
        configs={"scale.pkl": Scale(2.0), "name.txt": "ranking"},
        extra_files={"movies.json": "{}", "index.bin": b"\0"},
    )
    assert records(package) == [
        "__configs/name.txt",
        "__configs/scale.pkl",
        "__module_loader.py",
        "extra_files/index.bin",
        "extra_files/movies.json",
        "tests/support/factories/base.py",
        "tests/support/factories/house.py",
        "tests/support/factories/packaged.py",
        "tests/support/factories/ranking.py",
        "tests/support/factories/telemetry.py",
        "torchrec/inference/model_packager.py",
    ]


def test_a_packager_s_externs_and_mocks_are_obeyed(tmp_path: Path) -> None:
    package = save(tmp_path, factory=HousePredictFactory, packager=HousePackager)
    assert "tests/support/factories/house.py" not in records(package)
    importer = PackageImporter(str(package))
    assert "tests.support.factories.house" in importer.extern_modules
    source = importer.zip_reader.get_record("tests/support/factories/telemetry.py").decode()
    assert source.startswith("from _mock import MockedObject")


def test_simple_factory_is_packed_whatever_a_packager_externs(tmp_path: Path) -> None:
    """So an archive goes on with the copy that it was built with."""

    class Packager(DefaultPackager):
        @classmethod
        def set_extern_modules(cls, pe: PackageExporter) -> None:
            super().set_extern_modules(pe)
            pe.extern("torchrec_handler.**")

    package = save(tmp_path, factory=EveryInput, packager=Packager)
    assert "torchrec_handler/simple.py" in records(package)


def test_both_methods_of_a_packager_are_called_before_anything_is_packed(tmp_path: Path) -> None:
    class Packager(DefaultPackager):
        called: ClassVar[list[str]] = []

        @classmethod
        def set_extern_modules(cls, pe: PackageExporter) -> None:
            cls.called.append("extern")
            super().set_extern_modules(pe)

        @classmethod
        def set_mocked_modules(cls, pe: PackageExporter) -> None:
            cls.called.append("mock")
            super().set_mocked_modules(pe)

    save(tmp_path, packager=Packager)
    assert Packager.called == ["extern", "mock"]


@pytest.mark.parametrize(
    "config",
    [
        "text",
        5,
        {"a": [1, 2], "b": None},
        timedelta(seconds=3),
        torch.arange(3),
    ],
)
def test_any_object_that_can_be_pickled_is_a_config(tmp_path: Path, config: Any) -> None:
    package = save(tmp_path, configs={"c": config})
    if isinstance(config, str):
        assert PackageImporter(str(package)).load_text("__configs", "c") == config
    else:
        read = open_package(package).load_config("c")
        assert type(read) is type(config)
        assert torch.equal(read, config) if isinstance(config, torch.Tensor) else read == config


# The ways to write it.


@pytest.mark.parametrize("form", ["str", "path", "buffer", "file"])
def test_a_package_may_be_written_to_a_path_or_a_file(tmp_path: Path, form: str) -> None:
    """TorchRec's own function with our packager, as users of plain torch-model-archiver call it."""
    path = tmp_path / "predict_factory.pt"
    if form == "file":
        with path.open("wb") as file:
            DefaultPackager.save_predict_factory(RankingPredictFactory, {}, file, {})
    elif form == "buffer":
        buffer = io.BytesIO()
        DefaultPackager.save_predict_factory(RankingPredictFactory, {}, buffer, {})
        path.write_bytes(buffer.getvalue())
    else:
        output = str(path) if form == "str" else path
        DefaultPackager.save_predict_factory(RankingPredictFactory, {}, output, {})
    assert open_package(path).factory.result_metadata() == "dict_of_tensor"


def test_the_loader_code_may_be_given_or_be_the_packager_s(tmp_path: Path) -> None:
    given = open_package(save(tmp_path, loader_code=LOADER)).factory
    assert given.made_by == "my loader"
    replaced = open_package(save(tmp_path, packager=LoaderCodePackager)).factory
    assert replaced.made_by == "my loader"


def test_a_factory_that_came_out_of_a_package_is_packed_again(tmp_path: Path) -> None:
    first = PackageImporter(str(save(tmp_path)))
    factory = first.import_module("tests.support.factories.ranking").RankingPredictFactory
    assert factory.__module__.startswith("<torch_package_")
    (tmp_path / "again").mkdir()
    package = save(tmp_path / "again", factory=factory, package_importer=[first, sys_importer])
    assert records(package) == records(tmp_path / "predict_factory.pt")
    assert open_package(package).factory.result_metadata() == "dict_of_tensor"


def test_a_factory_that_came_out_of_a_package_needs_its_importer(tmp_path: Path) -> None:
    first = PackageImporter(str(save(tmp_path)))
    factory = first.import_module("tests.support.factories.ranking").RankingPredictFactory
    module = factory.__module__
    (tmp_path / "again").mkdir()
    assert error_of(lambda: save(tmp_path / "again", factory=factory)) == (
        "packager: DefaultPackager.save_predict_factory raised ModuleNotFoundError: Module not "
        f"found: '{module}'. Make sure the PackageImporter that created this module is present in "
        "`self.importer`; RankingPredictFactory came out of a torch.package: give "
        "package_importer=[its PackageImporter, torch.package.sys_importer]"
    )


# What cannot be packed.


def test_a_module_that_cannot_be_packed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.package's own report names it; ours says what to do."""
    (tmp_path / "shop_factory.py").write_text(
        "import orjson\n"
        "from tests.support.factories.ranking import RankingPredictFactory\n"
        "class ShopPredictFactory(RankingPredictFactory): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    factory = __import__("shop_factory").ShopPredictFactory
    assert error_of(lambda: save(tmp_path, factory=factory)) == (
        "packager: DefaultPackager could not pack ShopPredictFactory; extern, mock or deny the "
        "modules below in a packager of your own (--packager)\n\n"
        "* Module is a C extension module. torch.package supports Python modules only.\n"
        "    orjson.orjson\n\n"
        "Set debug=True when invoking PackageExporter for a visualization of where broken modules "
        "are coming from!\n"
    )


def test_a_config_that_cannot_be_pickled_is_said(tmp_path: Path) -> None:
    assert error_of(lambda: save(tmp_path, configs={"c": threading.Lock()})) == (
        "packager: DefaultPackager.save_predict_factory raised TypeError: cannot pickle "
        "'_thread.lock' object"
    )


def test_a_config_of_the_running_script_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scale, "__module__", "__main__")
    assert error_of(lambda: save(tmp_path, configs={"scale.pkl": Scale(2.0)})) == (
        "config scale.pkl: Scale is defined in the script that runs, which would be packed whole; "
        "move it to a module"
    )


def test_an_extra_file_of_another_type_is_refused(tmp_path: Path) -> None:
    assert error_of(lambda: save(tmp_path, extra_files={"movies.json": {"1": "Up"}})) == (
        "extra file movies.json: received a dict, expected text or bytes"
    )


@pytest.mark.parametrize("what", ["configs", "extra_files"])
def test_a_name_with_a_folder_in_it_is_refused(tmp_path: Path, what: str) -> None:
    assert error_of(lambda: save(tmp_path, **{what: {"data/movies.json": "{}"}})) == (  # type: ignore[arg-type]
        "packager: DefaultPackager.save_predict_factory raised ValueError: 'data/movies.json' must "
        "be only a file name"
    )


def test_what_the_user_s_packager_raises_is_said(tmp_path: Path) -> None:
    class Packager(DefaultPackager):
        @classmethod
        def set_extern_modules(cls, pe: PackageExporter) -> None:
            pe.extern(5)  # type: ignore[arg-type]

    said = error_of(lambda: save(tmp_path, packager=Packager))
    assert said == (
        "packager: Packager.save_predict_factory raised TypeError: 'int' object is not iterable"
    )


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    said = error_of(lambda: save(tmp_path / "nowhere"))
    assert said.startswith(
        "packager: DefaultPackager.save_predict_factory raised RuntimeError: Parent directory "
        f"{tmp_path / 'nowhere'} does not exist."
    )
