"""Third step of loading: from the TorchRec package to a predict module and its metadata."""

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.package.package_importer import PackageImporter
from torchrec.inference.model_packager import CONFIG_MODULE, LOADER_FACTORY, LOADER_MODULE
from torchrec.inference.modules import BatchingMetadata, PredictFactory, QualNameMetadata

from torchrec_handler.archive import BATCHING_TYPES, RESULT_TYPES
from torchrec_handler.errors import FactoryError

logger = logging.getLogger(__name__)

FORWARD = "forward"
"""The qualname of a request that names none."""


@dataclass(frozen=True, kw_only=True)
class FactoryOutput:
    """What a factory gave: its predict module, and how to feed and read it."""

    factory: PredictFactory
    module: torch.nn.Module
    batching: Mapping[str, BatchingMetadata]
    """Input name -> how requests' inputs are combined, and where the result goes."""
    qualnames: Mapping[str, QualNameMetadata]
    """Method name -> whether it takes the batched input; always holds `forward`."""
    result_metadata: str
    """One of `RESULT_TYPES`."""
    model_inputs_data: Mapping[str, Any]


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
            message = f"package: config {name!r} cannot be loaded: {_describe(error)}"
            raise FactoryError(message) from error


def open_package(package: Path) -> Package:
    """Import the factory from what `PredictFactoryPackager.save_predict_factory` wrote.

    Raises:
        FactoryError: the file is no package, an extern module is missing here, or the factory's
            code raised.
    """
    try:
        importer = PackageImporter(str(package))
    except RuntimeError as error:
        message = f"{package.name}: not a torch package ({_first_line(error)})"
        raise FactoryError(message) from error
    try:
        make_factory = getattr(importer.import_module(LOADER_MODULE), LOADER_FACTORY)
        return Package(importer=importer, factory=make_factory())
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing.partition(".")[0] in {
            name.partition(".")[0] for name in importer.extern_modules
        }:
            message = (
                f"{package.name}: needs the extern module {missing!r}, which this worker lacks; "
                "install it, list it in --requirements-file, or let the packager intern it"
            )
        else:
            message = f"{package.name}: {error}; the packager neither interned nor externed it"
        raise FactoryError(message) from error
    except Exception as error:
        message = f"{package.name}: the factory could not be made: {_describe(error)}"
        if isinstance(error, AttributeError) and "'NoneType' object has no" in str(error):
            message += (
                "; a dataclass in the package cannot be in a module that says "
                "`from __future__ import annotations`"
            )
        raise FactoryError(message) from error


def run_factory(factory: PredictFactory, device: torch.device, world_size: int) -> FactoryOutput:
    """Call `create_predict_module`, then `run_weights_independent_tranformations`.

    A `create_predict_module` that takes `world_size` or `device` (as TorchRec's own DLRM example
    does, against its base class) gets them.

    Raises:
        FactoryError: a method of the factory raised, or its metadata contradicts its module.
    """
    accepted = inspect.signature(factory.create_predict_module).parameters
    offered = {"world_size": world_size, "device": str(device)}
    arguments = {name: value for name, value in offered.items() if name in accepted}
    module = _call(factory.create_predict_module, **arguments)
    module = _call(factory.run_weights_independent_tranformations, module)
    if not isinstance(module, torch.nn.Module):
        message = (
            f"{_name(factory)}.run_weights_independent_tranformations: received "
            f"{type(module).__name__}, expected the torch.nn.Module to go on with"
        )
        raise FactoryError(message)
    return FactoryOutput(
        factory=factory,
        module=module,
        batching=_read_batching(factory, device),
        qualnames=_read_qualnames(factory, module),
        result_metadata=_read_result_metadata(factory),
        model_inputs_data=_call(factory.model_inputs_data),
    )


def run_weights_dependent(output: FactoryOutput) -> torch.nn.Module:
    """Call `run_weights_dependent_transformations` on the module that now has its weights."""
    transform = output.factory.run_weights_dependent_transformations
    module: torch.nn.Module = _call(transform, output.module)
    for name in output.qualnames:
        if not callable(getattr(module, name, None)):
            message = (
                f"{_name(output.factory)}.run_weights_dependent_transformations: returned a "
                f"{type(module).__name__} without the method {name!r} that qualname_metadata names"
            )
            raise FactoryError(message)
    return module


def _read_batching(factory: PredictFactory, device: torch.device) -> dict[str, BatchingMetadata]:
    where = f"{_name(factory)}.batching_metadata"
    batching = {}
    for name, entry in _read_json(factory.batching_metadata_json, factory.batching_metadata):
        # TorchRec's own DLRM example gives plain type names instead of BatchingMetadata.
        known = (
            BatchingMetadata(type=entry, device=device.type, pinned=[])
            if isinstance(entry, str)
            else BatchingMetadata(**entry)
        )
        if known.type not in BATCHING_TYPES:
            expected = ", ".join(BATCHING_TYPES)
            message = f"{where}[{name!r}]: received type {known.type!r}, expected one of {expected}"
            raise FactoryError(message)
        if torch.device(known.device).type == "cuda" and device.type != "cuda":
            logger.warning("%s[%r]: device cuda, served on %s", where, name, device)
            known = BatchingMetadata(type=known.type, device=device.type, pinned=[])
        batching[name] = known
    if not batching:
        message = f"{where}: received no inputs, expected at least one"
        raise FactoryError(message)
    return batching


def _read_qualnames(
    factory: PredictFactory, module: torch.nn.Module
) -> dict[str, QualNameMetadata]:
    qualnames = {FORWARD: QualNameMetadata(need_preproc=True)}
    for name, entry in _read_json(factory.qualname_metadata_json, factory.qualname_metadata):
        if not callable(getattr(module, name, None)):
            message = (
                f"{_name(factory)}.qualname_metadata: names {name!r}, "
                f"but {type(module).__name__} has no such method"
            )
            raise FactoryError(message)
        qualnames[name] = QualNameMetadata(**entry)
    return qualnames


def _read_json(
    as_json: Callable[[], str], as_objects: Callable[[], Mapping[str, Any]]
) -> Iterable[tuple[str, Any]]:
    """Read metadata in its JSON form, as TorchRec's C++ server does.

    The objects' classes may come out of the package, and a plain-string form has no JSON one.
    """
    objects = _call(as_objects)
    if any(isinstance(entry, str) for entry in objects.values()):
        return list(objects.items())
    document: dict[str, Any] = json.loads(_call(as_json))
    return list(document.items())


def _read_result_metadata(factory: PredictFactory) -> str:
    result_metadata = str(_call(factory.result_metadata))
    if result_metadata not in RESULT_TYPES:
        message = (
            f"{_name(factory)}.result_metadata: received {result_metadata!r}, "
            f"expected one of {', '.join(RESULT_TYPES)}"
        )
        raise FactoryError(message)
    return result_metadata


def _call(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return method(*args, **kwargs)
    except Exception as error:
        name = getattr(method, "__qualname__", repr(method))
        message = f"{name} raised {_describe(error)}"
        raise FactoryError(message) from error


def _name(factory: PredictFactory) -> str:
    return type(factory).__name__


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
