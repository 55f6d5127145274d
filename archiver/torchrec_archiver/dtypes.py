"""`dense.dtype: auto`: the fastest type of each layer with which no output is off by too much.

Layers change their types while the model stays as it is, so what is measured is the model with all
of its layers, and never a sum of errors.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from torchrec_archiver.changes import Change, Changes
from torchrec_archiver.moves import Move, find_moves, find_units
from torchrec_handler.archive.format import DenseDtypes
from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.graph.method import EVERY
from torchrec_handler.kernels.products import INSTRUCTIONS
from torchrec_handler.load.placing import Placed, Placing
from torchrec_handler.options import KernelDtype

logger = logging.getLogger(__name__)

SECONDS = 20.0
"""To decide in; layers that nobody came to by then stay as they are."""
SECONDS_ALONE = 10.0
"""Of these, to look at layers one by one, those that gain most first."""
SECONDS_SILENT = 2.0

Dtypes = dict[str, KernelDtype]


def decide(placing: Placing, choice: Choice, changes: Changes) -> Placed:
    """Find types, and put kernels in place that compute in them.

    Args:
        placing: of a module that is ready but for its kernels; `dense.max_error` is given.
        choice: an open one, in place, all in float32.
        changes: what the model gives so.
    """
    began = time.monotonic()
    allowed = placing.options.dense.max_error or 0.0
    search = _Search(choice, changes, allowed, began)
    found = search.run()
    had = torch.cpu.get_capabilities()
    needed = dict.fromkeys(one for of_dtype in INSTRUCTIONS.values() for one in of_dtype)
    # In place of an open choice, which a graph was timed with in float32, what a worker does.
    while True:
        dense = DenseDtypes(
            dtypes=dict(sorted(found.items())),
            allowed=allowed,
            max_error=0.0,
            mean_error=0.0,
            rows=changes.rows,
            instructions=tuple(one for one in needed if had.get(one)),
        )
        placed = placing.put_decided(dense)
        if all(dtype == "float32" for dtype in found.values()):
            break
        largest, mean = _either_way(placed, changes)
        if largest <= allowed:
            dense = replace(dense, max_error=largest, mean_error=mean)
            break
        found = search.before()
    logger.info("dense.dtype: auto: %s, in %.1f s", _said(dense), time.monotonic() - began)
    return replace(placed, dense=dense)


def _either_way(placed: Placed, changes: Changes) -> Change:
    """By graphs and by the modules' kernels: which a worker takes at a size, its own times say."""
    found = changes.measure()
    methods = [one for one in placed.graphs.values() if one.ranges != EVERY]
    served = [one.ranges for one in methods]
    for ranges in ([*EVERY], []) if methods else ():
        for method in methods:
            method.ranges = ranges
        other = changes.measure()
        found = Change(max(found.largest, other.largest), max(found.mean, other.mean))
    for method, ranges in zip(methods, served, strict=True):
        method.ranges = ranges
    return found


def _said(dense: DenseDtypes) -> str:
    found = list(dense.dtypes.values())
    counts = ", ".join(f"{found.count(one)} in {one}" for one in dict.fromkeys(found))
    return (
        f"{counts or 'no layer that another type is faster for'}; outputs off by at most "
        f"{dense.max_error:.2g}, of {dense.allowed:.2g} allowed"
    )


class _Search:
    """Types one by one, by what they save for what they change."""

    def __init__(self, choice: Choice, changes: Changes, allowed: float, began: float) -> None:
        self._choice, self._changes, self._allowed, self._began = choice, changes, allowed, began
        self._told = began
        units = find_units(choice)
        self._history: list[Dtypes] = [{name: "float32" for one in units for name in one.names}]
        self._moves = [move for unit in units for move in find_moves(unit)]

    def run(self) -> Dtypes:
        """The types of all parameters."""
        if self._fits(self._with(sorted(self._moves, key=lambda move: move.saves))):
            return self._history[-1]
        moves = self._ordered()
        fits, fails = 0, len(moves) + 1
        while fails - fits > 1 and not self._is_late(SECONDS):
            count = (fits + fails) // 2
            if self._fits(self._with(moves[:count])):
                fits = count
            else:
                fails = count
        # Behind what is too much, others may change less.
        taken = moves[:fits]
        for move in moves[fails:]:
            if self._is_late(SECONDS):
                logger.warning(
                    "dense.dtype: auto: stopped after %.0f s; layers that were not tried stay in "
                    "a more precise type",
                    SECONDS,
                )
                break
            tried = self._with([*taken, move])
            if tried != self._history[-1] and self._fits(tried):
                taken = [*taken, move]
        return self._history[-1]

    def before(self) -> Dtypes:
        """The types before the last that was found."""
        self._history.pop()
        return self._history[-1]

    def _with(self, moves: Sequence[Move]) -> Dtypes:
        """What moves give; of two of the same layers the one that saves more."""
        dtypes = dict(self._history[0])
        for move in sorted(moves, key=lambda move: move.saves):
            dtypes |= dict.fromkeys(move.names, move.dtype)
        return dtypes

    def _ordered(self) -> list[Move]:
        """Moves that may be made alone, those first that save most for what they change."""
        found: list[tuple[float, Move]] = []
        for move in sorted(self._moves, key=lambda move: -move.saves):
            if self._is_late(SECONDS_ALONE):
                break
            self._choice.change(self._with([move]))
            largest = self._changes.guess()
            if largest <= self._allowed:
                found.append((move.saves / max(largest, 1e-30), move))
            self._tell(f"{len(found)} of {len(self._moves)} types of layers may fit so far")
        return [move for _, move in sorted(found, key=lambda one: -one[0])]

    def _fits(self, dtypes: Dtypes) -> bool:
        """Whether that is not too far off; it is found then."""
        self._choice.change(dtypes)
        fits = self._changes.measure(self._allowed).largest <= self._allowed
        if fits:
            self._history.append(dtypes)
        found = [one for one in self._history[-1].values() if one != "float32"]
        self._tell(f"{len(found)} of {len(dtypes)} parameters in lower types so far")
        return fits

    def _is_late(self, seconds: float) -> bool:
        return time.monotonic() - self._began > seconds

    def _tell(self, found: str) -> None:
        if time.monotonic() - self._told > SECONDS_SILENT:
            self._told = time.monotonic()
            logger.info("dense.dtype: auto: %.0f s, %s", time.monotonic() - self._began, found)
