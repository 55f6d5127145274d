"""Second step of building: TorchRec's own packager, with externs that suit this server."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.package.package_exporter import PackageExporter, PackagingError
from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_archiver.near import near_path
from torchrec_handler.errors import BuildError


class DefaultPackager(PredictFactoryPackager):
    """Interns the user's code; what every worker has installed stays outside."""

    @classmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        """Extern torch, torchrec and what they need.

        `torchrec.inference.model_packager` is interned: `load_pickle_config` and
        `load_config_text` read a global that exists only in a copy inside the package. So is
        `torchrec_handler.simple`: an archive serves with the one that it was built with.
        """
        pe.intern(["torchrec.inference.model_packager", "torchrec_handler.simple"])
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
    content = read_bytes(f"config {name}", path)
    try:
        # The user's own file, at build time.
        return pickle.loads(content) if path.suffix == ".pkl" else content.decode()  # noqa: S301
    except Exception as error:
        message = f"config {name}: {path} cannot be read: {type(error).__name__}: {error}"
        raise BuildError(message) from error


def read_bytes(what: str, path: Path) -> bytes:
    """Read a file that the user named.

    Raises:
        BuildError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{what}: {path} cannot be read: {error.strerror}"
        raise BuildError(message, hint=near_path(path)) from error


def save_package(
    packager: type[PredictFactoryPackager],
    factory: type[PredictFactory],
    configs: Mapping[str, Any],
    extra_files: Mapping[str, Any],
    output: Path,
    **arguments: Any,
) -> None:
    """Run `PredictFactoryPackager.save_predict_factory`.

    Args:
        packager: with the user's externs and mocks.
        factory: the class to pack.
        configs: name -> str, or any object that can be pickled.
        extra_files: name -> content.
        output: the package to write.
        arguments: `loader_code` and `package_importer`, where they are given.

    Raises:
        BuildError: torch.package could not pack a module, with its own report, or a config.
    """
    for name, config in configs.items():
        if type(config).__module__ == "__main__":
            message = (
                f"config {name}: {type(config).__name__} is defined in the script that runs, which "
                "would be packed whole; move it to a module"
            )
            raise BuildError(message)
    for name, content in extra_files.items():
        if not isinstance(content, str | bytes):
            message = (
                f"extra file {name}: received a {type(content).__name__}, expected text or bytes"
            )
            raise BuildError(message)
    try:
        with warnings.catch_warnings():
            # torch.package itself uses it, for tensors in configs.
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
            packager.save_predict_factory(
                factory, dict(configs), output, dict(extra_files), **arguments
            )
    except PackagingError as error:
        message = (
            f"packager: {packager.__name__} could not pack {factory.__name__}; extern, mock or "
            f"deny the modules below in a packager of your own (--packager)\n{error}"
        )
        raise BuildError(message) from error
    except Exception as error:
        message = (
            f"packager: {packager.__name__}.save_predict_factory raised "
            f"{type(error).__name__}: {error}"
        )
        if factory.__module__.startswith("<torch_package_"):
            message += (
                f"; {factory.__name__} came out of a torch.package: give package_importer="
                "[its PackageImporter, torch.package.sys_importer]"
            )
        raise BuildError(message) from error
