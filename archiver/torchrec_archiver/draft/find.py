"""Imports the model that `init` is pointed at, and makes one."""

import inspect
from typing import Any, NamedTuple

import psutil
import torch

from torchrec_archiver.factory import import_module
from torchrec_archiver.near import near_name
from torchrec_handler.errors import BuildError
from torchrec_handler.tables.find import find_collections


class FoundModel(NamedTuple):
    """A model, and how a factory makes another one."""

    model: torch.nn.Module
    make: str
    """The expression, which may use `device`."""
    import_line: str


def find_model(name: str) -> FoundModel:
    """Import `MODULE:CLASS`, `MODULE:FUNCTION` or `MODULE:OBJECT`, and make the model.

    A function or class that takes `device` is given it.

    Raises:
        BuildError: it is not there, needs arguments, raised, or made something else.
    """
    module, found_name = import_module("model", name)
    found = getattr(module, found_name, None)
    if found is None:
        message = f"model: module {module.__name__!r} has no {found_name!r}"
        own = [
            known
            for known, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise BuildError(message, hint=near_name(found_name, own, "classes and functions"))
    import_line = f"from {module.__name__} import {found_name}"
    if isinstance(found, torch.nn.Module):
        return FoundModel(found, found_name, import_line)
    takes_device = _takes_device(name, found)
    if takes_device:
        _check_room(name, found)
    model = _make(name, found, torch.device("cpu") if takes_device else None)
    make = f"{found_name}(device=device)" if takes_device else f"{found_name}()"
    return FoundModel(model, make, import_line)


def _takes_device(name: str, found: Any) -> bool:
    if not callable(found):
        message = f"model: {name} is a {type(found).__name__}, expected a Module, or what makes one"
        raise BuildError(message)
    parameters = inspect.signature(found).parameters
    needed = [
        known
        for known, one in parameters.items()
        if one.default is inspect.Parameter.empty
        and one.kind not in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        and known != "device"
    ]
    if needed:
        message = f"model: {name} needs {', '.join(needed)}"
        hint = "write a function without parameters that returns the model, and name that"
        raise BuildError(message, hint=hint)
    return "device" in parameters


def _check_room(name: str, found: Any) -> None:
    """Asked on the meta device, its tables tell how large they are before there is memory."""
    collections = find_collections(_make(name, found, torch.device("meta")))
    size = sum(table.weight.nbytes for table in collections.float_tables)
    free = psutil.virtual_memory().available
    if size > free:
        message = (
            f"model: {name}: its tables take {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB of memory "
            "are free"
        )
        hint = "name a function that makes the same tables with fewer rows, and edit the factory"
        raise BuildError(message, hint=hint)


def _make(name: str, found: Any, device: torch.device | None) -> torch.nn.Module:
    try:
        made = found() if device is None else found(device=device)
    except Exception as error:
        message = f"model: {name} raised {type(error).__name__}: {error}"
        raise BuildError(message) from error
    if not isinstance(made, torch.nn.Module):
        message = f"model: {name} made a {type(made).__name__}, expected a torch.nn.Module"
        raise BuildError(message)
    return made
