"""What modules keep in attributes, which a graph neither reads nor writes when it is called."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

OWN = frozenset(vars(torch.nn.Module())) - {"_parameters", "_buffers", "training"}
"""Attributes of every module, which are no state of it."""

State = Mapping[tuple[int, str], Any]


def state_of(module: torch.nn.Module) -> State:
    """What there is in a module and its parts: constants, and all else by its identity."""
    found: dict[tuple[int, str], Any] = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if name not in OWN:
                found[id(part), name] = _known(value)
    return found


def _known(value: Any) -> Any:
    """What is another one once the value is another, or holds others."""
    if value is None or isinstance(value, bool | int | float | str):
        return type(value), value
    if isinstance(value, torch.Tensor):
        return id(value), 0 if value.is_inference() else value._version  # noqa: SLF001
    if type(value) is dict:
        return [(key, _known(one)) for key, one in value.items()]
    if type(value) in {list, tuple}:
        return [_known(one) for one in value]
    return id(value)


@contextlib.contextmanager
def as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Put attributes back that somebody gives to a module or its parts."""
    before = [(vars(part), dict(vars(part))) for part in module.modules()]
    lists = [
        (value, value.copy())
        for own, _ in before
        for name, value in own.items()
        if type(value) in {dict, list} and name not in OWN
    ]
    try:
        yield
    finally:
        for own, values in before:
            for name in own.keys() - values.keys():
                del own[name]
            own.update(values)
        for value, content in lists:
            value.clear()
            (value.update if isinstance(value, dict) else value.extend)(content)
