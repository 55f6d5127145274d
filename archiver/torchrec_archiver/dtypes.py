"""`dense.dtype: auto`: the fastest type of each layer with which no output is off by too much.

Layers change their types while the model stays as it is, so what is measured is the model with all
of its layers, and never a sum of errors. Shapes: K inputs of a layer.
"""

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from torchrec_archiver.changes import Changes
from torchrec_handler.archive.format import DenseDtypes
from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.packed import (
    INSTRUCTIONS,
    INT8_WEIGHTS,
    PACKED_WEIGHTS,
    Layer,
    Layers,
    is_fast,
)
from torchrec_handler.load.placing import Placed, Placing
from torchrec_handler.options import KernelDtype

logger = logging.getLogger(__name__)

TIMED_ROWS = (128, 1000)
TIMES = 3
SECONDS_OF_TIMING = 0.02
"""For a layer, a type and a number of rows."""

PAYS = 0.97
"""A type is taken where layers take at most so much of the time of a more precise one."""

SECONDS = 20.0
"""To decide in; layers that nobody came to by then stay as they are."""
SECONDS_ALONE = 12.0
"""Of these, to measure layers one by one, those that gain most first."""
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
        largest, mean = changes.measure()
        if largest <= allowed:
            dense = replace(dense, max_error=largest, mean_error=mean)
            break
        found = search.before()
    logger.info("dense.dtype: auto: %s, in %.1f s", _said(dense), time.monotonic() - began)
    return replace(placed, dense=dense)


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
        fastest = dict(self._history[0])
        for move in sorted(self._moves, key=lambda move: move.saves):
            fastest |= dict.fromkeys(move.names, move.dtype)
        if self._fits(fastest):
            # What it has in common with fewer moves is not known.
            self._history.append(fastest)
            return fastest
        saved: dict[str, float] = {}
        for move in self._ordered():
            if self._seconds() > SECONDS:
                logger.warning(
                    "dense.dtype: auto: stopped after %.0f s; layers that were not tried stay in "
                    "a more precise type",
                    SECONDS,
                )
                break
            tried = self._history[-1] | dict.fromkeys(move.names, move.dtype)
            before = max(saved.get(name, 0.0) for name in move.names)
            if move.saves > before and self._fits(tried):
                self._history.append(tried)
                saved |= dict.fromkeys(move.names, move.saves)
        return self._history[-1]

    def before(self) -> Dtypes:
        """The types before the last that was found."""
        self._history.pop()
        return self._history[-1]

    def _ordered(self) -> list[Move]:
        """Moves that may be made alone, those first that save most for what they change."""
        found: list[tuple[float, Move]] = []
        for move in sorted(self._moves, key=lambda move: -move.saves):
            if self._seconds() > SECONDS_ALONE:
                break
            self._choice.change(self._history[0] | dict.fromkeys(move.names, move.dtype))
            largest = self._changes.measure(self._allowed).largest
            if largest <= self._allowed:
                found.append((move.saves / max(largest, 1e-30), move))
            self._tell(f"{len(found)} of {len(self._moves)} types of layers fit alone so far")
        return [move for _, move in sorted(found, key=lambda one: -one[0])]

    def _fits(self, dtypes: Dtypes) -> bool:
        self._choice.change(dtypes)
        fits = self._changes.measure(self._allowed).largest <= self._allowed
        self._tell(f"{len(self._history) - 1} of {len(self._moves)} types of layers taken so far")
        return fits

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, found: str) -> None:
        if time.monotonic() - self._told > SECONDS_SILENT:
            self._told = time.monotonic()
            logger.info("dense.dtype: auto: %.0f s, %s", self._seconds(), found)


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
    layers = list(unit.layers.values())
    numbers = [layer.weight.numel() for layer in layers]
    usual = best = _seconds_a_row(layers, "float32")
    least: tuple[tuple[KernelDtype, int], ...]
    least = ("bfloat16", PACKED_WEIGHTS), ("int8", INT8_WEIGHTS)
    for dtype, weights in least:
        if is_fast(dtype) and max(numbers) >= weights:
            seconds = _seconds_a_row(layers, dtype)
            if seconds < PAYS * best:
                best = seconds
                yield Move(unit.names, dtype, usual - seconds)


def _seconds_a_row(layers: Sequence[Layer], dtype: KernelDtype) -> float:
    return sum(_seconds(layer, dtype, rows) / rows for layer in layers for rows in TIMED_ROWS)


def _seconds(layer: Layer, dtype: KernelDtype, rows: int) -> float:
    """The least time of a call of a layer, packed alone, [B, K] in float32."""
    packed = Layers([layer], dtype)
    x = torch.randn(rows, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
    packed(x)
    times: list[float] = []
    end = time.perf_counter() + SECONDS_OF_TIMING
    while len(times) < TIMES or time.perf_counter() < end:
        began = time.perf_counter()
        packed(x)
        times.append(time.perf_counter() - began)
    return min(times)
