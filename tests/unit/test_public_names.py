"""The names that users may build on: one that goes or comes changes this file, and the version."""

import inspect
from types import ModuleType

import pytest

import torchrec_archiver
import torchrec_handler
from torchrec_handler import errors
from torchrec_handler.archive import format as archive


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (torchrec_archiver, ["DefaultPackager", "build_archive"]),
        (torchrec_handler, ["__version__"]),
    ],
)
def test_packages_export_these_names_only(package: ModuleType, names: list[str]) -> None:
    assert sorted(package.__all__) == names
    assert all(hasattr(package, name) for name in names)


def test_the_arguments_of_build_archive() -> None:
    parameters = inspect.signature(torchrec_archiver.build_archive).parameters.values()
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    required = [entry.name for entry in parameters if entry.default is inspect.Parameter.empty]
    optional = {
        entry.name: entry.default
        for entry in parameters
        if entry.default is not inspect.Parameter.empty
    }
    assert required == ["model_name", "version", "factory", "export_path"]
    assert optional == {
        "configs": None,
        "weights": None,
        "weights_map": None,
        "weights_key": None,
        "ignore_weights": (),
        "allow_invalid_rows": (),
        "samples": None,
        "max_output_error": None,
        "allow_failing_samples": False,
        "extra_files": None,
        "packager": torchrec_archiver.DefaultPackager,
        "loader_code": None,
        "package_importer": None,
        "config_file": None,
        "requirements_file": None,
        "archive_format": "auto",
        "force": False,
        "progress": False,
    }


def test_the_names_of_an_archive_s_members() -> None:
    """Other tools read archives by these names."""
    assert {
        archive.MANIFEST,
        archive.PACKAGE,
        archive.MODEL_CONFIG,
        archive.INDEX,
        archive.DENSE,
        archive.TABLES,
        archive.REQUIREMENTS,
    } == {
        "MAR-INF/MANIFEST.json",
        "predict_factory.pt",
        "model-config.yaml",
        "archive.json",
        "dense.safetensors",
        "tables.bin",
        "requirements.txt",
    }
    assert archive.HANDLER == "torchrec_handler.handler"
    assert archive.FORMAT_VERSION == "1.1"


def test_every_error_can_be_caught_as_one() -> None:
    own = [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ]
    assert all(issubclass(found, errors.TorchRecServeError) for found in own)
