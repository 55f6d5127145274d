"""Modules inside of a method that cannot be followed as a whole, each as a graph of its own.

What the method does between them runs as it is. A part takes and gives tensors that have a row for
each of its rows; what it takes is recorded while the method is tried.
Shapes: B rows of a part, which need not be those of the batch.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchrec_handler.archive.format import Declined
from torchrec_handler.kernels.graph.asked import Asked
from torchrec_handler.kernels.graph.capture import Batch, Captured, as_batch, flatten, follow
from torchrec_handler.kernels.graph.method import Graph, GraphMethod
from torchrec_handler.kernels.graph.methods import reduce
from torchrec_handler.kernels.graph.program import Program, aten
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.state import State, state_of
from torchrec_handler.kernels.graph.traced import LEAST, ROWS, Axis, is_new
from torchrec_handler.kernels.graph.trials import Trial
from torchrec_handler.kernels.kernel import touched
from torchrec_handler.kernels.linear import layers_of
from torchrec_handler.options import GRAPH
from torchrec_handler.tables.find import is_collection

logger = logging.getLogger(__name__)

MOST = 12
"""Parts that are followed, of a module; each takes some 0.05 s."""

MOST_CALLS = 4
"""Of a part in one call of the method, that are recorded."""

BRANCHES = "it branches on numbers that it computes"
CHANGES = "its attributes change from call to call"

RESULT = ""
"""What a part gives, in the dict that a graph gives."""


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
        self._call, self.method = call, method
        self._few = bool(call.few)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        call = self._call
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


def capture_parts(
    module: torch.nn.Module,
    batches: Iterable[tuple[str, Trial]],
    call: Callable[[str, Batch], Any],
    stuck: Collection[torch.nn.Module],
) -> tuple[list[Part], list[Declined]]:
    """Follow the largest modules that can be followed, below one of which not all can.

    Args:
        module: the predict module; it is left as it was.
        batches: methods that cannot be followed, and what they take, of several numbers of rows.
        call: calls a method.
        stuck: modules that cannot be followed, as is known of the methods.

    Returns:
        The parts, and why others are none.
    """
    parts: list[Part] = []
    declined: list[Declined] = []
    try:
        candidates, recorded = _record(module, batches, call)
    except Exception as error:
        logger.warning("kernels: parts of graphs raised", exc_info=True)
        return [], [Declined(path="", kernel=GRAPH, why=_raised(error))]
    waiting = list(module.named_children())
    seen: set[torch.nn.Module] = set()
    left = set(stuck)
    tries = 0
    while waiting:
        path, one = waiting.pop(0)
        if one in seen or is_collection(one):
            continue
        seen.add(one)
        is_called = path in candidates and bool(recorded.calls.get(one))
        if is_called and one in left:
            declined.append(Declined(path=path, kernel=GRAPH, why=BRANCHES))
        elif is_called and tries < MOST:
            tries += 1
            try:
                recorded.asked.check(one)
                parts.append(_captured(path, one, recorded.calls[one]))
            except CannotCapture as error:
                declined.append(Declined(path=path, kernel=GRAPH, why=str(error)))
                left |= error.stuck
            except Exception as error:
                logger.warning("kernels: graph raised on %s", path, exc_info=True)
                declined.append(Declined(path=path, kernel=GRAPH, why=_raised(error)))
            else:
                continue
        waiting += [(f"{path}.{name}", child) for name, child in one.named_children()]
    return parts, declined


def _raised(error: Exception) -> str:
    return f"raised {type(error).__name__}: {error}"


def _record(
    module: torch.nn.Module,
    batches: Iterable[tuple[str, Trial]],
    call: Callable[[str, Batch], Any],
) -> tuple[dict[str, torch.nn.Module], "_Recorded"]:
    """Modules that may be parts, by path, and what they are called with."""
    candidates = {path: one for path, one in module.named_modules() if path and _is_of_parts(one)}
    with _recorded(candidates.values()) as recorded, recorded.asked.listening():
        for qualname, trial in batches:
            recorded.is_timed = trial.is_timed
            recorded.left = dict.fromkeys(candidates.values(), MOST_CALLS)
            call(qualname, trial.batch)
    return candidates, recorded


def _is_of_parts(module: torch.nn.Module) -> bool:
    """Whether a graph may compute what its modules do not one by one."""
    return (
        next(module.children(), None) is not None
        and not isinstance(module, torch.jit.ScriptModule)
        and not isinstance(layers_of(module), list)
        and not any(map(is_collection, module.modules()))
    )


class _Recorded:
    """What modules were called with, and what they gave."""

    def __init__(self) -> None:
        self.calls: dict[torch.nn.Module, list[tuple[Any, Any, bool, str | None]]] = {}
        """Arguments, by position and by name; whether to time that; and what speaks against it."""
        self.left: dict[torch.nn.Module, int] = {}
        self.is_timed = True
        self.asked = Asked()
        self._states: dict[torch.nn.Module, State] = {}
        """Attributes before the first call."""

    def before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if self.left.get(module, 0):
            given = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
            why = self._changed(module)
            self.calls.setdefault(module, []).append((*given, self.is_timed, why))

    def behind(self, module: torch.nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if self.left.get(module, 0):
            self.left[module] -= 1
            *call, why = self.calls[module][-1]
            why = why or self._changed(module)
            why = why or _why_not(pytree.tree_leaves((args, kwargs)), pytree.tree_leaves(result))
            self.calls[module][-1] = (*call, why)

    def _changed(self, module: torch.nn.Module) -> str | None:
        """Who calls a part may write what that reads, and read what it writes."""
        state = state_of(module)
        return None if self._states.setdefault(module, state) == state else CHANGES


def _why_not(given: Sequence[Any], found: Sequence[Any]) -> str | None:
    others = [type(one).__name__ for one in found if type(one) is not torch.Tensor]
    if others or not found:
        return f"gives a {[*others, 'NoneType'][0]}, which is no tensor"
    own = {one.untyped_storage().data_ptr() for one in given if isinstance(one, torch.Tensor)}
    memory = [one.untyped_storage().data_ptr() for one in found if one.numel()]
    if not own.isdisjoint(memory):
        return "gives what it is given, which who calls it may write to"
    if len(memory) > len({*memory}):
        return "gives the same memory twice, which who calls it may write to"
    return None


@contextlib.contextmanager
def _recorded(modules: Iterable[torch.nn.Module]) -> Iterator[_Recorded]:
    recorded = _Recorded()
    handles = []
    for module in modules:
        handles += [
            module.register_forward_pre_hook(recorded.before, with_kwargs=True),
            module.register_forward_hook(recorded.behind, with_kwargs=True),
        ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _captured(path: str, module: torch.nn.Module, calls: Sequence[Any]) -> Part:
    """Follow one module.

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
    reduce(captured)
    _own_results(captured.program)
    graph = Graph(qualname=path, captured=captured, method=call.compute)
    return Part(module=module, call=call, graph=graph, trials=trials)


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
