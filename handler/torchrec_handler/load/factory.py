"""Third step of loading, second half: from the factory to a predict module and its metadata."""

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar, cast

import torch
from torchrec.inference.modules import BatchingMetadata, PredictFactory, QualNameMetadata

from torchrec_handler.archive.format import BATCHING_TYPES, RESULT_TYPES
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.package import describe

T = TypeVar("T")

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
    """Input name -> what the model itself does not show: `features` (F names, in the order of the
    lengths), `num_features` (F), `width` (D of an embedding input), `outputs` (see `told`), and
    `hashed`, `out_of_range` and `defaults` (see `raw`). Other names and keys are the factory's
    own."""


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
    _expect(module, torch.nn.Module, f"{_name(factory)}.create_predict_module")
    module = _call(factory.run_weights_independent_tranformations, module)
    _expect(module, torch.nn.Module, f"{_name(factory)}.run_weights_independent_tranformations")
    return FactoryOutput(
        factory=factory,
        module=module,
        batching=_read_batching(factory, device),
        qualnames=_read_qualnames(factory, module),
        result_metadata=_read_result_metadata(factory),
        model_inputs_data=_read_model_inputs_data(factory),
    )


def run_weights_dependent(output: FactoryOutput) -> torch.nn.Module:
    """Call `run_weights_dependent_transformations` on the module that now has its weights.

    Raises:
        FactoryError: it raised, or its module lacks a method that `qualname_metadata` names.
    """
    where = f"{_name(output.factory)}.run_weights_dependent_transformations"
    module = _call(output.factory.run_weights_dependent_transformations, output.module)
    _expect(module, torch.nn.Module, where)
    for name in output.qualnames:
        if not callable(getattr(module, name, None)):
            message = (
                f"{where}: returned a {type(module).__name__} without the method {name!r} that "
                "qualname_metadata names"
            )
            raise FactoryError(message)
    return cast("torch.nn.Module", module)


def _read_batching(factory: PredictFactory, device: torch.device) -> dict[str, BatchingMetadata]:
    where = f"{_name(factory)}.batching_metadata"
    given = _call(factory.batching_metadata)
    _expect(given, Mapping, where)
    if given and all(isinstance(entry, str) for entry in given.values()):
        # TorchRec's own DLRM example gives the types alone, which have no JSON form.
        batching = {
            name: BatchingMetadata(type=entry, device=device.type, pinned=[])
            for name, entry in given.items()
        }
    else:
        batching = _read_json(given, factory.batching_metadata_json, BatchingMetadata, where)
    if not batching:
        message = f"{where}: received no inputs, expected at least one"
        raise FactoryError(message)
    for name, entry in batching.items():
        _check_batching(entry, f"{where}[{name!r}]")
        if entry.device.startswith("cuda") and device.type != "cuda":
            logger.warning("%s[%r]: device cuda, served on %s", where, name, device)
            batching[name] = BatchingMetadata(type=entry.type, device=device.type, pinned=[])
    return batching


def _check_batching(entry: BatchingMetadata, where: str) -> None:
    if entry.type not in BATCHING_TYPES:
        expected = ", ".join(BATCHING_TYPES)
        message = f"{where}: received type {entry.type!r}, expected one of {expected}"
        raise FactoryError(message)
    if str(entry.device).partition(":")[0] not in {"cpu", "cuda"}:
        message = f"{where}: received device {entry.device!r}, expected cpu or cuda"
        raise FactoryError(message)
    if not (isinstance(entry.pinned, list) and all(isinstance(part, str) for part in entry.pinned)):
        message = f"{where}: received pinned {entry.pinned!r}, expected a list of suffixes"
        raise FactoryError(message)


def _read_qualnames(
    factory: PredictFactory, module: torch.nn.Module
) -> dict[str, QualNameMetadata]:
    where = f"{_name(factory)}.qualname_metadata"
    given = _call(factory.qualname_metadata)
    _expect(given, Mapping, where)
    read = _read_json(given, factory.qualname_metadata_json, QualNameMetadata, where)
    for name, entry in read.items():
        if not callable(getattr(module, name, None)):
            message = f"{where}: names {name!r}, but {type(module).__name__} has no such method"
            raise FactoryError(message)
        if not isinstance(entry.need_preproc, bool):
            message = (
                f"{where}[{name!r}]: received need_preproc {entry.need_preproc!r}, "
                "expected True or False"
            )
            raise FactoryError(message)
    return {FORWARD: QualNameMetadata(need_preproc=True), **read}


def _read_json(
    given: Mapping[str, Any], as_json: Callable[[], str], kind: type[T], where: str
) -> dict[str, T]:
    """Read metadata in its JSON form, as TorchRec's C++ server does.

    The classes of the objects themselves may come out of the package.
    """
    for name, entry in given.items():
        if not is_dataclass(entry):
            message = (
                f"{where}[{name!r}]: received a {type(entry).__name__}, expected {kind.__name__}"
            )
            raise FactoryError(message)
    text = _call(as_json)
    try:
        return {name: kind(**entry) for name, entry in json.loads(text).items()}
    except (TypeError, ValueError, AttributeError) as error:
        message = (
            f"{where}_json: received {text!r}, "
            f"expected a JSON object of {kind.__name__} fields by name"
        )
        raise FactoryError(message) from error


def _read_model_inputs_data(factory: PredictFactory) -> Mapping[str, Any]:
    where = f"{_name(factory)}.model_inputs_data"
    data = _call(factory.model_inputs_data)
    _expect(data, Mapping, where)
    for name, entry in data.items():
        known = entry if isinstance(entry, Mapping) else {}
        features = known.get("features", ())
        if isinstance(features, str) or not (
            isinstance(features, Sequence) and all(isinstance(found, str) for found in features)
        ):
            message = f"{where}[{name!r}]['features']: received {features!r}, expected names"
            raise FactoryError(message)
        for key in ("num_features", "width"):
            if not isinstance(known.get(key, 1), int) or known.get(key, 1) < 1:
                message = f"{where}[{name!r}][{key!r}]: received {known[key]!r}, expected 1 or more"
                raise FactoryError(message)
        if "features" in known and known.get("num_features", len(features)) != len(features):
            message = (
                f"{where}[{name!r}]: received {len(features)} features, "
                f"but num_features {known['num_features']}"
            )
            raise FactoryError(message)
    return cast("Mapping[str, Any]", data)


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
        message = f"{name} {describe(error)}"
        raise FactoryError(message) from error


def _expect(value: object, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        message = f"{where}: returned a {type(value).__name__}, expected a {kind.__name__}"
        raise FactoryError(message)


def _name(factory: PredictFactory) -> str:
    return type(factory).__name__
