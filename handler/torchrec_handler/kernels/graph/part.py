"""A module inside of a method as a graph of its own, in place of its forward.

A part takes and gives tensors that have a row for each of its rows.
Shapes: B rows of a part, which need not be those of the batch.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchrec_handler.kernels.graph.capture import Batch, Captured, as_batch, flatten, follow
from torchrec_handler.kernels.graph.lengths import LEAST, ROWS, Axis
from torchrec_handler.kernels.graph.memory import is_new
from torchrec_handler.kernels.graph.method import Graph, GraphMethod
from torchrec_handler.kernels.graph.methods import reduce, with_weights
from torchrec_handler.kernels.graph.program import Program, aten
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.trials import Trial
from torchrec_handler.kernels.kernel import touched

RESULT = ""
"""What a part gives, in the dict that a graph gives."""

Given = tuple[Any, Any, bool, str | None]
"""To a call: arguments, by position and by name; whether to time it; what speaks against it."""


class Call:
    """How a part is called: which arguments are tensors of what form, and which are known."""

    def __init__(
        self, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """See what one call was given.

        Raises:
            CannotCapture: something else than tensors [B * k, ...], lists of these and constants.
        """
        self.own: Callable[..., Any] = module.forward
        """What the part computes without its graph."""
        self.few = set(range(LEAST))
        """Numbers of rows that it is not known to give the same for."""
        self._count, self._names = len(args), list(kwargs)
        self._known = {
            name: value for name, value in self._named(args, kwargs) if _is_constant(value)
        }
        batch = {
            name: value for name, value in self._named(args, kwargs) if name not in self._known
        }
        for value in batch.values():
            kinds = value if isinstance(value, list | tuple) and value else [value]
            others = [type(one).__name__ for one in kinds if type(one) is not torch.Tensor]
            if others:
                message = f"is given a {others[0]}, which is no tensor"
                raise CannotCapture(message)
        tensors = flatten(batch)[1]
        if not tensors or not all(one.dim() for one in tensors):
            message = "is given no tensors of rows"
            raise CannotCapture(message)
        self._lengths = {
            name: len(value) for name, value in batch.items() if isinstance(value, list | tuple)
        }
        least = min(one.shape[0] for one in tensors)
        self.times = [one.shape[0] // max(least, 1) for one in tensors]
        self._forms = [(one.shape[1:], one.dtype) for one in tensors]
        self._first = self.times.index(1)

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        return [*((str(at), value) for at, value in enumerate(args)), *kwargs.items()]

    def batch(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Batch | None:
        """What a call is given, as a graph takes it; None where that has another form."""
        if len(args) != self._count or list(kwargs) != self._names:
            return None
        batch: dict[str, Any] = {}
        tensors: list[Any] = []
        for name, value in self._named(args, kwargs):
            if name in self._known:
                known = self._known[name]
                if type(value) is not type(known) or value != known:
                    return None
            elif name in self._lengths:
                if not isinstance(value, list | tuple) or len(value) != self._lengths[name]:
                    return None
                batch[name] = value
                tensors += value
            else:
                batch[name] = value
                tensors.append(value)
        if any(
            type(one) is not torch.Tensor
            or one.dtype != dtype
            or one.dim() != len(rest) + 1
            or one.shape[1:] != rest
            for one, (rest, dtype) in zip(tensors, self._forms, strict=True)
        ):
            return None
        rows = tensors[self._first].shape[0]
        if any(
            one.shape[0] != rows * times for one, times in zip(tensors, self.times, strict=True)
        ):
            return None
        if not all(one.is_contiguous() for one in tensors):
            batch = pytree.tree_map(torch.Tensor.contiguous, batch)
        return batch

    def of(self, module: torch.nn.Module) -> "Call":
        """How a module is called that was made as this one was."""
        call = copy.copy(self)
        call.own = module.forward
        return call

    def rows(self, batch: Batch) -> int:
        """B of what a call was given."""
        return int(flatten(batch)[1][self._first].shape[0])

    def compute(self, batch: Batch) -> dict[str, Any]:
        """What the part itself gives."""
        given: dict[str, Any] = {**batch, **self._known}
        args = [given[str(at)] for at in range(self._count)]
        return {RESULT: self.own(*args, **{name: given[name] for name in self._names})}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module as a graph, not in place yet."""

    module: torch.nn.Module
    call: Call
    graph: Graph
    trials: Sequence[Trial]


class PartForward:
    """A graph in place of a module's forward."""

    def __init__(self, call: Call, method: GraphMethod) -> None:
        """Take the place of `call.own`."""
        self.call, self.method = call, method
        self._few = bool(call.few)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        call = self.call
        batch = None
        if not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            batch = call.batch(args, kwargs)
        if batch is None or (self._few and call.rows(batch) in call.few):
            return call.own(*args, **kwargs)
        return self.method(batch)[RESULT]


class _Called(torch.nn.Module):
    """A part, called with tensors."""

    def __init__(
        self, module: torch.nn.Module, call: Call, names: Sequence[tuple[str, int | None]]
    ) -> None:
        super().__init__()
        self.module = module
        self._call, self._names = call, names

    def forward(self, *tensors: torch.Tensor) -> dict[str, Any]:
        return self._call.compute(as_batch(self._names, tensors))


def capture_part(path: str, module: torch.nn.Module, calls: Sequence[Given]) -> Part:
    """Follow one module.

    Args:
        path: of the module.
        module: it is left as it was.
        calls: of several numbers of rows.

    Raises:
        CannotCapture: says why.
    """
    why = next(filter(None, map(touched, module.modules())), None)
    why = why or next((one[3] for one in calls if one[3]), None)
    if why:
        raise CannotCapture(why)
    args, kwargs, *_ = max(calls, key=lambda one: _largest(one[:2]))
    call = Call(module, args, kwargs)
    trials: list[Trial] = []
    for args, kwargs, is_timed, _ in calls:
        batch = call.batch(args, kwargs)
        if batch is None:
            message = "is called in more than one way"
            raise CannotCapture(message)
        rows = call.rows(batch)
        call.few.discard(rows)
        is_first = all(rows != one.rows for one in trials)
        trials.append(Trial(rows, batch, is_timed=is_timed and is_first and rows > 0))
    trials.sort(key=lambda one: one.rows)
    some = next((one for one in trials if one.rows > LEAST), None)
    if some is None or trials[0].rows == trials[-1].rows:
        message = "is given as many rows whatever the batch"
        raise CannotCapture(message)
    names, tensors = flatten(some.batch)
    axes = [Axis(ROWS, times) for times in call.times]
    traced = follow(_Called(module, call, names), tensors, axes)
    captured = Captured(
        program=traced.program, sites=[], rows=traced.rows, names=names, spec=traced.spec
    )
    whole = replace(captured, program=captured.program.copy())
    reduce(captured)
    _own_results(captured.program)
    graph = Graph(qualname=path, captured=captured, method=call.compute, whole=whole)
    return Part(module=module, call=call, graph=graph, trials=trials)


def part_with_weights(
    old: PartForward, modules: tuple[torch.nn.Module, torch.nn.Module], mode: Callable[[], Any]
) -> PartForward | None:
    """A part with the weights of another predict module, see `with_weights`.

    Args:
        old: in place in the first module.
        modules: as there.
        mode: as there.
    """
    call = old.call.of(modules[1].get_submodule(old.method.qualname))
    method = with_weights(old.method, call.compute, modules, mode, _own_results)
    if method is None:
        return None
    method.stay_alone()
    return PartForward(call, method)


def _own_results(program: Program) -> None:
    """Who calls a part may write to what it gives, and ask for another view of it."""
    output = program.output
    found: list[Any] = []
    with program.before(output):
        for one in output.args[0]:
            is_own = is_new(one) and one not in found
            whole = {"memory_format": torch.contiguous_format}
            found.append(one if is_own else program.emit(aten.clone.default, one, **whole))
    output.args = (tuple(found),)


def _largest(given: Any) -> int:
    """Elements of the first axis of what a call was given."""
    tensors = (one for one in pytree.tree_leaves(given) if isinstance(one, torch.Tensor))
    return max((one.shape[0] for one in tensors if one.dim()), default=0)


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
