"""A method of a predict module as a graph, with embedding collections cut out of it.

The method is followed once, with B left open. What a collection gives is a node of its
own, which names the site; inside of it nothing is followed.
Shapes: B rows, F features, D width, N ids.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torchrec.inference.modules import PredictModule

from torchrec_handler.kernels.graph.asked import Asked
from torchrec_handler.kernels.graph.following import masks_as_they_are, open_lengths, quiet
from torchrec_handler.kernels.graph.lengths import ROWS, Axis
from torchrec_handler.kernels.graph.program import Program, Site
from torchrec_handler.kernels.graph.sites import Boundary, CannotCapture, Recorder, boundaries
from torchrec_handler.kernels.graph.traced import Traced, trace

Batch = Mapping[str, torch.Tensor | list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A method as a graph."""

    program: Program
    sites: list[Site]
    rows: Any
    """The expression that is B in shapes."""
    names: list[tuple[str, int | None]]
    """Of each input of the graph: its name in the batch, and its position in a list of tensors."""
    spec: pytree.TreeSpec
    """How the outputs are put together."""


def capture(
    module: torch.nn.Module, qualname: str, batch: Batch, features: Mapping[str, int]
) -> Captured:
    """Follow a method.

    Args:
        module: the predict module; it is left as it was.
        qualname: a method that takes the batched input.
        batch: some rows of it, more than two.
        features: F of each sparse input.

    Raises:
        CannotCapture: says why.
    """
    names, tensors = flatten(batch)
    sites: list[Site] = []
    asked = Asked()
    with boundaries(module, lambda inner: Recorder(inner, sites)), asked.listening():
        _call(module, qualname, batch)
    asked.check()
    method = _Method(module, qualname, names)
    # Where something is written to in place it is followed twice.
    calls = itertools.cycle(range(len(sites)))
    with boundaries(module, lambda inner: Boundary(inner, sites, calls)):
        traced = follow(method, tensors, [_axis(name, features) for name, _ in names])
    return Captured(
        program=traced.program, sites=sites, rows=traced.rows, names=names, spec=traced.spec
    )


def follow(
    module: torch.nn.Module, tensors: Sequence[torch.Tensor], axes: Sequence[Axis]
) -> Traced:
    """Trace a module, see `trace`; what is changed for it in the process is put back."""
    with masks_as_they_are(), open_lengths(module), quiet(), torch.no_grad():
        return trace(module, tensors, axes)


def flatten(batch: Batch) -> tuple[list[tuple[str, int | None]], list[torch.Tensor]]:
    """The tensors of a batch, and what they are: name, and position in a list."""
    names: list[tuple[str, int | None]] = []
    tensors: list[torch.Tensor] = []
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            names.append((name, None))
            tensors.append(value)
        else:
            names += [(name, position) for position in range(len(value))]
            tensors += value
    return names, tensors


def _axis(name: str, features: Mapping[str, int]) -> Axis:
    owner, _, suffix = name.rpartition(".")
    if owner not in features:
        return Axis(ROWS)
    return Axis(ROWS, features[owner]) if suffix == "lengths" else Axis(f"ids of {owner}")


def as_batch(names: Sequence[tuple[str, int | None]], tensors: Sequence[torch.Tensor]) -> Batch:
    """What `flatten` took apart: tensors by name, those with a position as lists."""
    batch: dict[str, Any] = {}
    for (name, position), tensor in zip(names, tensors, strict=True):
        if position is None:
            batch[name] = tensor
        else:
            batch.setdefault(name, []).append(tensor)
    return batch


class _Method(torch.nn.Module):
    """A method of a predict module, called with tensors."""

    def __init__(
        self, module: torch.nn.Module, qualname: str, names: Sequence[tuple[str, int | None]]
    ) -> None:
        super().__init__()
        self.module = module
        self._qualname, self._names = qualname, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        """What the method gives, as a plain dict."""
        result = _call(self.module, self._qualname, as_batch(self._names, tensors))
        if not isinstance(result, Mapping):
            message = "it does not give a dict"
            raise CannotCapture(message)
        return {str(name): value for name, value in result.items()}


def _call(module: Any, qualname: str, batch: Batch) -> Any:
    """A method without the modes that `PredictModule.forward` sets, which nobody can follow."""
    is_plain = isinstance(module, PredictModule) and type(module).forward is PredictModule.forward
    method = "predict_forward" if qualname == "forward" and is_plain else qualname
    with torch.no_grad():
        return getattr(module, method)(batch)
