"""Packagers as users write them."""

from pathlib import Path
from typing import Any, BinaryIO

from torch.package.importer import Importer, sys_importer
from torch.package.package_exporter import PackageExporter
from torchrec.inference.model_packager import LOADER_CODE, PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_archiver import DefaultPackager

LOADER = """
import %PACKAGE%

def MODULE_FACTORY():
    factory = %PACKAGE%.%CLASS%()
    factory.made_by = "my loader"
    return factory
"""


class MockingPackager(DefaultPackager):
    """Adds a mock to the default packager's externs."""

    @classmethod
    def set_mocked_modules(cls, pe: PackageExporter) -> None:
        """The worker must not have it."""
        pe.mock("tests.support.factories.telemetry")


class HousePackager(MockingPackager):
    """Adds an extern too."""

    @classmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        """The worker has it."""
        super().set_extern_modules(pe)
        pe.extern("tests.support.factories.house")


class OwnPackager(PredictFactoryPackager):
    """Written from TorchRec's documentation alone."""

    @classmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        """What TorchRec's own DLRM packager externs, and what has come since."""
        pe.intern("torchrec.inference.model_packager")
        pe.extern(["torch.**", "torchrec.**", "fbgemm_gpu.**", "numpy.**"])

    @classmethod
    def set_mocked_modules(cls, pe: PackageExporter) -> None:
        """None."""


class ForgetfulPackager(PredictFactoryPackager):
    """Externs all of torchrec, the functions that read configs included."""

    @classmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        """Too much."""
        pe.extern(["torch.**", "torchrec.**", "fbgemm_gpu.**", "numpy.**"])

    @classmethod
    def set_mocked_modules(cls, pe: PackageExporter) -> None:
        """None."""


class LoaderCodePackager(DefaultPackager):
    """Replaces save_predict_factory, so that the command line reaches all its arguments."""

    @classmethod
    def save_predict_factory(  # noqa: PLR0913, PLR0917  TorchRec's own arguments
        cls,
        predict_factory: type[PredictFactory],
        configs: dict[str, Any],
        output: str | Path | BinaryIO,
        extra_files: dict[str, str | bytes],
        loader_code: str = LOADER_CODE,  # noqa: ARG003  replaced
        package_importer: Importer | list[Importer] = sys_importer,
    ) -> None:
        """Save with another loader."""
        super().save_predict_factory(
            predict_factory, configs, output, extra_files, LOADER, package_importer
        )
