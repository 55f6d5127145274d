"""`dense.dtype: auto`: the fastest type of each layer with which no output is off by too much.

Layers change their types while the model stays as it is, so what is measured is the model with all
of its layers, and never a sum of errors. Shapes: K inputs of a layer.
"""

import gc
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch

from torchrec_archiver.changes import Change, Changes
from torchrec_handler.archive.format import DenseDtypes
from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.graph.method import EVERY
from torchrec_handler.kernels.packed import (
    INSTRUCTIONS,
    INT8_WEIGHTS,
    PACKED_WEIGHTS,
    Layer,
    Layers,
    is_fast,
)
from torchrec_handler.load.placing import Placed, Placing
from torchrec_handler.options import KERNEL_DTYPES, KernelDtype

logger = logging.getLogger(__name__)

TIMED_ROWS = (128, 1000)
TIMES = 4
SECONDS_OF_TIMING = 0.05
"""For layers of one shape, and a number of rows."""

PAYS = 0.95
"""A type is taken where layers take at most so much of the time of a more precise one."""

SECONDS = 20.0
"""To decide in; layers that nobody came to by then stay as they are."""
SECONDS_ALONE = 10.0
"""Of these, to look at layers one by one, those that gain most first."""
SECONDS_SILENT = 2.0

Dtypes = dict[str, KernelDtype]


class Move(NamedTuple):
    """A type for some layers."""

    names: frozenset[str]
    """Of the parameters that they are made of."""
    dtype: KernelDtype
    saves: float
    """Of the seconds a row in float32."""


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
        units = _units(choice)
        self._history: list[Dtypes] = [{name: "float32" for one in units for name in one.names}]
        self._moves = [move for unit in units for move in _moves(unit)]

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


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """Layers of one type: of parameters that a graph makes one layer of."""

    names: frozenset[str]
    layers: dict[tuple[frozenset[str], torch.Size], Layer] = field(default_factory=dict)


def _units(choice: Choice) -> list[_Unit]:
    """All packed layers that are known by their parameters."""
    # A graph that was left out is gone then.
    gc.collect()
    units: list[_Unit] = []
    for packed in list(choice.watching):
        for layer in packed.layers:
            names = choice.names(layer.sources)
            if not names:
                continue
            near = [unit for unit in units if unit.names & names]
            layers = {(names, layer.weight.shape): layer}
            for unit in near:
                layers |= unit.layers
            units = [unit for unit in units if unit not in near]
            units.append(_Unit(names=names.union(*(one.names for one in near)), layers=layers))
    return sorted(units, key=lambda unit: sorted(unit.names))


def _moves(unit: _Unit) -> Iterator[Move]:
    """Types that this processor has, and that pay."""
    times = [_times(*layer.weight.shape) for layer in unit.layers.values()]
    usual = best = sum(one["float32"] for one in times)
    for dtype in KERNEL_DTYPES[1:]:
        # Where a layer has none of a type, it computes in the more precise one.
        seconds = sum(one[dtype] for one in times)
        if seconds < PAYS * best:
            best = seconds
            yield Move(unit.names, dtype, usual - seconds)


@cache
def _times(outputs: int, inputs: int) -> dict[KernelDtype, float]:
    """Type -> the seconds a row of a layer, packed alone; in turns, as a machine does other things.

    A type that the processor has no instructions for, or that the layer is too small for, takes as
    long as the next more precise one.
    """
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=random)
    has = {
        "float32": True,
        "bfloat16": is_fast("bfloat16") and weight.numel() >= PACKED_WEIGHTS,
        "int8": is_fast("int8") and weight.numel() >= INT8_WEIGHTS,
    }
    packed = {
        dtype: Layers([Layer(weight, torch.zeros(outputs))], dtype)
        for dtype in KERNEL_DTYPES
        if has[dtype]
    }
    seconds: dict[KernelDtype, float] = dict.fromkeys(packed, 0.0)
    for rows in TIMED_ROWS:
        x = torch.randn(rows, inputs, generator=random)
        least: dict[KernelDtype, float] = dict.fromkeys(packed, math.inf)
        end, turns = time.perf_counter() + SECONDS_OF_TIMING, 0
        # The first turn of each is slower.
        while turns <= TIMES or time.perf_counter() < end:
            turns += 1
            for dtype, layers in packed.items():
                # Of this thread alone, which others may interrupt.
                began = time.thread_time()
                layers(x)
                least[dtype] = min(least[dtype], time.thread_time() - began)
        for dtype in packed:
            seconds[dtype] += least[dtype] / rows
    for precise, dtype in pairwise(KERNEL_DTYPES):
        seconds.setdefault(dtype, seconds[precise])
    return seconds
