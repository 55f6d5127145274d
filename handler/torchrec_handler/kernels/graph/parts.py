"""Which modules are graphs of their own, inside of a method that cannot be followed as a whole.

What the method does between them runs as it is. What parts take is recorded while it is tried.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchrec_handler.archive.format import Declined
from torchrec_handler.kernels.graph.asked import Asked
from torchrec_handler.kernels.graph.capture import Batch
from torchrec_handler.kernels.graph.part import Given, Part, capture_part
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.state import State, state_of
from torchrec_handler.kernels.graph.trials import Trial
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
                parts.append(capture_part(path, one, recorded.calls[one]))
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
        self.calls: dict[torch.nn.Module, list[Given]] = {}
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
