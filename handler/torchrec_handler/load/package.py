"""Third step of loading, first half: from the TorchRec package to its factory."""

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.package.package_importer import PackageImporter
from torchrec.inference.model_packager import CONFIG_MODULE, LOADER_FACTORY, LOADER_MODULE
from torchrec.inference.modules import PredictFactory

from torchrec_handler.errors import FactoryError

LOADER_SOURCE = f"{LOADER_MODULE}.py"
NOT_IN_PACKAGE = "in self-contained archive"
"""What PackageImporter says of a module that it was not told about, and no other import error."""
NOT_HELD: Mapping[str, str] = {
    CONFIG_MODULE: "a config that the package does not hold; give it with --config",
    "extra_files": "an extra file that the package does not hold; give it with --extra-files",
}
"""What a factory asked for in vain, by its folder in the package."""
NO_RECORD = re.compile(rf"failed locating file ({'|'.join(NOT_HELD)})/(.+?): file not found")
CONFIG_READERS = ("load_pickle_config", "load_config_text")
"""TorchRec's functions that read a config of the package by its name."""
FACTORY_METHODS = sorted(name for name in vars(PredictFactory) if not name.startswith("_"))
"""Looked for by name: a package that interns torchrec has a PredictFactory of its own."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """An opened package and its factory."""

    importer: PackageImporter
    factory: PredictFactory

    def load_config(self, name: str) -> Any:
        """Unpickle a config of the package.

        Raises:
            FactoryError: the package has no such config.
        """
        try:
            return self.importer.load_pickle(CONFIG_MODULE, name)
        except Exception as error:
            message = f"package: loading the config {name!r} {describe(error)}"
            raise FactoryError(message) from error


def open_package(package: Path) -> Package:
    """Import the factory from what `PredictFactoryPackager.save_predict_factory` wrote.

    Raises:
        FactoryError: the file is no package, an extern module is missing here, or the factory's
            code raised.
    """
    try:
        importer = PackageImporter(str(package))
    except Exception as error:
        message = f"{package.name}: not a torch package ({_first_line(error)})"
        raise FactoryError(message) from error
    if LOADER_SOURCE not in importer.zip_reader.get_all_records():
        message = (
            f"{package.name}: a torch package without {LOADER_MODULE}; "
            "make it with PredictFactoryPackager.save_predict_factory"
        )
        raise FactoryError(message)
    try:
        factory = getattr(importer.import_module(LOADER_MODULE), LOADER_FACTORY)()
    except Exception as error:
        message = f"{package.name}: making the factory {describe(error)}"
        if isinstance(error, AttributeError) and "'NoneType' object has no" in str(error):
            message += (
                "; a dataclass in the package cannot be in a module that says "
                "`from __future__ import annotations`"
            )
        raise FactoryError(message) from error
    if lacking := [name for name in FACTORY_METHODS if not callable(getattr(factory, name, None))]:
        message = (
            f"{package.name}: {LOADER_FACTORY} made a {type(factory).__name__}, expected a "
            f"PredictFactory; it lacks {', '.join(lacking)}"
        )
        raise FactoryError(message)
    return Package(importer=importer, factory=factory)


def describe(error: Exception) -> str:
    """What an exception of a factory's code says, as a verb and the rest of a sentence."""
    if isinstance(error, ModuleNotFoundError):
        if str(error.name) in NOT_HELD:
            return f"asks for {_asked_for(error)}{NOT_HELD[str(error.name)]}"
        if NOT_IN_PACKAGE in str(error):
            return f"needs module {error.name!r}, which the packager neither interned nor externed"
        return (
            f"needs the extern module {error.name!r}, which this worker lacks; "
            "install it, list it in --requirements-file, or let the packager intern it"
        )
    if found := NO_RECORD.search(str(error)):
        return f"asks for {found[2]!r}, {NOT_HELD[found[1]]}"
    said = f"raised {type(error).__name__}: {error}"
    if isinstance(error, NameError) and error.name == "torch_package_importer":
        said += "; the packager must intern torchrec.inference.model_packager"
    return said


def _asked_for(error: Exception) -> str:
    """The file that TorchRec's `load_pickle_config` or `load_config_text` was called for."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in CONFIG_READERS and "name" in frame.f_locals:
            return f"{frame.f_locals['name']!r}, "
    return ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
