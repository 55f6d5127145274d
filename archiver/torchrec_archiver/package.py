"""Second step of building: TorchRec's own packager, with externs that suit this server."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.package.package_exporter import PackageExporter, PackagingError
from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_handler.errors import BuildError


class DefaultPackager(PredictFactoryPackager):
    """Interns the user's code; what every worker has installed stays outside."""

    @classmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        """Extern torch, torchrec and what they need.

        `torchrec.inference.model_packager` is interned: `load_pickle_config` and
        `load_config_text` read a global that exists only in a copy inside the package.
        """
        pe.intern("torchrec.inference.model_packager")
        pe.extern(
            [
                "torch.**",
                "torchrec.**",
                "fbgemm_gpu.**",
                "tensordict.**",
                "torchmetrics.**",
                "numpy.**",
                "tqdm.**",
                "typing_extensions.**",
                "pyre_extensions.**",
            ]
        )

    @classmethod
    def set_mocked_modules(cls, pe: PackageExporter) -> None:
        """Mock nothing."""


def read_config(name: str, path: Path) -> Any:
    """Read a config for `save_predict_factory`.

    Returns:
        The object in a file that ends in `.pkl`, the text of any other.

    Raises:
        BuildError: the file cannot be read or unpickled.
    """
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return pickle.load(file)  # noqa: S301  the user's own file, at build time
        return path.read_text(encoding="utf-8")
    except Exception as error:
        message = f"config {name}: {path} cannot be read: {type(error).__name__}: {error}"
        raise BuildError(message) from error


def save_package(
    packager: type[PredictFactoryPackager],
    factory: type[PredictFactory],
    configs: Mapping[str, Any],
    extra_files: Mapping[str, str | bytes],
    output: Path,
) -> None:
    """Run `PredictFactoryPackager.save_predict_factory`.

    Raises:
        BuildError: torch.package could not pack a module; the message is its own report.
    """
    try:
        packager.save_predict_factory(factory, dict(configs), output, dict(extra_files))
    except PackagingError as error:
        message = (
            f"packager: {packager.__name__} could not pack {factory.__name__}; extern, mock or "
            f"deny the modules below in a packager of your own (--packager)\n{error}"
        )
        raise BuildError(message) from error
