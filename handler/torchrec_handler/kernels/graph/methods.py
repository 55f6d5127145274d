"""Methods of a predict module as graphs: captured, checked against the module, timed beside it.

A graph stands in for a method only where it gives what the method gives and is no slower. Whatever
it raises, the method itself is asked then: an error is the model's own.
Shapes: B rows, U users, F features.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchrec_handler.archive.format import Declined, Replaced, Sizes
from torchrec_handler.kernels.graph.capture import Batch, Captured, capture
from torchrec_handler.kernels.graph.cats import split_cats
from torchrec_handler.kernels.graph.clean import clean, is_random
from torchrec_handler.kernels.graph.layers import (
    fold_batch_norms,
    fuse_activations,
    merge_siblings,
)
from torchrec_handler.kernels.graph.method import (
    EVERY,
    TOLERANCES,
    Graph,
    GraphMethod,
    building,
)
from torchrec_handler.kernels.graph.parallel import join_parallel
from torchrec_handler.kernels.graph.places import read_places
from torchrec_handler.kernels.graph.program import Program
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.trials import Trial, differs
from torchrec_handler.kernels.kernel import Target, not_for, typename
from torchrec_handler.options import GRAPH

logger = logging.getLogger(__name__)

SECONDS = 0.2
"""To time a method in; each size is timed three times at least, and no more where these agree."""

SLOWER = 1.03
"""Of times the module's, a graph is left out: what is within it is noise."""


def capture_methods(
    module: torch.nn.Module,
    qualnames: Sequence[str],
    trial: Callable[[str], Trial | None],
    features: Mapping[str, int],
    target: Target,
) -> tuple[list[Graph], list[Declined], set[torch.nn.Module]]:
    """Follow the methods that take the batched input; the module is left as it was.

    Args:
        module: before kernels take its parts.
        qualnames: of these methods.
        trial: gives a batch of three rows or more that a method takes; None where there is none.
        features: F of each sparse input.
        target: where and how to compute.

    Returns:
        The graphs, why others are none, and modules of which each alone is none for that reason.
    """
    graphs: list[Graph] = []
    declined: list[Declined] = []
    stuck: set[torch.nn.Module] = set()
    for qualname in qualnames:
        why = not_for(target)
        given = None if why else trial(qualname)
        if why is None and given is None:
            why = "takes nothing that was drawn for its inputs"
        if given is not None:
            try:
                captured = capture(module, qualname, given.batch, features)
                whole = replace(captured, program=captured.program.copy())
                reduce(captured)
                method = getattr(module, qualname)
                graphs.append(
                    Graph(qualname=qualname, captured=captured, method=method, whole=whole)
                )
            except CannotCapture as error:
                why = str(error)
                stuck |= error.stuck
            except Exception as error:
                logger.warning("kernels: graph raised on %s", qualname, exc_info=True)
                why = f"raised {type(error).__name__}: {error}"
        if why is not None:
            declined.append(Declined(path=qualname, kernel=GRAPH, why=why))
    return graphs, declined, stuck


def reduce(captured: Captured) -> None:
    """Make a graph smaller.

    Raises:
        CannotCapture: it draws random numbers.
    """
    program = captured.program
    clean(program)
    fold_batch_norms(program)
    clean(program)
    fuse_activations(program)
    read_places(program, captured.rows)
    clean(program)
    merge_siblings(program)
    clean(program)
    join_parallel(program)
    clean(program)
    split_cats(program)
    clean(program)
    if any(map(is_random, program.nodes)):
        message = "draws random numbers"
        raise CannotCapture(message)


def choose(
    graphs: Sequence[Graph],
    module: torch.nn.Module,
    trials: Callable[[str], Sequence[Trial]],
    target: Target,
    mode: Callable[[], Any],
) -> tuple[dict[str, GraphMethod], list[Replaced], list[Declined]]:
    """Keep the graphs that give what the module gives, where they are no slower than it.

    Args:
        graphs: of its methods.
        module: ready to serve, its kernels in place.
        trials: batches by method, small ones first.
        target: where and how to compute.
        mode: what a method is called in.
    """
    kept: dict[str, GraphMethod] = {}
    replaced: list[Replaced] = []
    declined: list[Declined] = []
    for graph in graphs:
        qualname = graph.qualname
        try:
            method = GraphMethod(graph, target)
            method.trials = trials(qualname)
            with mode():
                why = _differs(method, TOLERANCES[target.dtype]) or _time(method)
        except Exception as error:
            logger.warning("kernels: graph raised on %s", qualname, exc_info=True)
            why = f"raised {type(error).__name__}: {error}"
            declined.append(Declined(path=qualname, kernel=GRAPH, why=why))
            continue
        if method.ranges:
            kept[qualname] = method
            sizes = tuple(
                Sizes(least=least, most=None if math.isinf(most) else int(most))
                for least, most in method.ranges
                if method.ranges != EVERY
            )
            replaced.append(
                Replaced(
                    path=qualname,
                    type=typename(module),
                    kernel=GRAPH,
                    dtype=method.dtype,
                    sizes=sizes,
                )
            )
        elif why is not None:
            declined.append(Declined(path=qualname, kernel=GRAPH, why=why))
    return kept, replaced, declined


def with_weights(
    old: GraphMethod,
    method: Callable[[Batch], Any],
    modules: tuple[torch.nn.Module, torch.nn.Module],
    mode: Callable[[], Any],
    finish: Callable[[Program], None] = lambda _: None,
) -> GraphMethod | None:
    """A graph with the weights of another module, which nobody follows again.

    Args:
        old: captured of the first module, or of a part of it.
        method: what it is in the second.
        modules: a module, and one made as that was, ready to serve but for its graphs.
        mode: what its methods are called in.
        finish: what is done to the program once it is smaller.

    Returns:
        None where a constant of the graph is nowhere in the module, or it does not give what the
        other module gives.
    """
    if old.whole is None:
        return None
    before, after = modules
    known, others = _tensors(before), _tensors(after)
    with building:
        program = old.whole.program.copy()
        for node in program.nodes:
            if "constant" not in node.meta:
                continue
            names = [known.get(id(one)) for one in node.meta["sources"]]
            if len(names) != 1 or names[0] not in others:
                logger.info("%s: keeps what is no weight, and stays no graph", old.qualname)
                return None
            tensor = others[names[0]]
            with program.before(node):
                constant = program.constant(tensor.detach(), (tensor,))
            program.replace(node, constant)
        paths = {module: path for path, module in before.named_modules()}
        sites = [
            replace(site, module=after.get_submodule(paths[site.module]))
            for site in old.whole.sites
        ]
        captured = replace(old.whole, program=program, sites=sites)
        reduce(captured)
        finish(program)
        made = GraphMethod(
            Graph(qualname=old.qualname, captured=captured, method=method), old.target
        )
        made.is_like(old)
    with mode():
        why = _differs(made, TOLERANCES[old.target.dtype])
    if why is not None:
        logger.warning("%s: is no graph with its new weights: %s", old.qualname, why)
        return None
    return made


def _tensors(module: torch.nn.Module) -> dict[Any, Any]:
    """Of each parameter, buffer and other tensor its path by its identity, and it by its path."""
    found: dict[Any, Any] = {}
    for path, part in module.named_modules():
        for name, value in {**vars(part), **part._parameters, **part._buffers}.items():  # noqa: SLF001
            if isinstance(value, torch.Tensor):
                found[id(value)] = f"{path}.{name}"
                found[f"{path}.{name}"] = value
    return found


def _differs(method: GraphMethod, tolerance: float) -> str | None:
    """How a graph differs from its method, but for batches of so few ids that it need not take."""
    for rows, batch, _ in method.trials:
        is_few = method.is_untried(batch)
        try:
            expected = pytree.tree_leaves(dict(method.method(batch)))
            why = differs(expected, method.tried(batch, rows), rows, tolerance)
        except Exception:
            if not is_few:
                raise
            continue
        if why is None:
            method.took(batch)
        elif not is_few:
            return _differs(method, tolerance) if method.stay_whole() else why
    return None


def _time(method: GraphMethod) -> str | None:
    """Find the sizes at which a graph is no slower; tell of those at which it is."""
    ratios: list[tuple[int, float]] = []
    timed = [trial for trial in method.trials if trial.is_timed]
    for rows, batch, _ in timed:
        end = time.perf_counter() + SECONDS / len(timed)
        pairs: list[float] = []
        while len(pairs) < 3 or (
            len(pairs) < 15 and not _agree(pairs) and time.perf_counter() < end
        ):
            pairs.append(_seconds(method.method, batch) / _seconds(method.compute, batch))
        ratios.append((rows, statistics.median(pairs)))
    slower: list[str] = []
    least = 1
    for position, (rows, ratio) in enumerate(ratios):
        is_last = position == len(ratios) - 1
        most = float("inf") if is_last else int((rows * ratios[position + 1][0]) ** 0.5)
        if ratio * SLOWER < 1:
            slower.append(f"{1 / ratio:.2f} times as long with {rows} rows")
        elif method.ranges and method.ranges[-1][1] == least - 1:
            method.ranges[-1] = (method.ranges[-1][0], most)
        else:
            method.ranges.append((least, most))
        least = int(most) + 1 if not is_last else least
    return f"takes {', '.join(slower)}" if slower else None


def _agree(ratios: Sequence[float]) -> bool:
    """Whether all say the same of which one is faster."""
    return min(ratios) > 1 or max(ratios) * SLOWER < 1


def _seconds(call: Callable[[Batch], Any], batch: Batch) -> float:
    begin = time.perf_counter()
    call(batch)
    return time.perf_counter() - begin
