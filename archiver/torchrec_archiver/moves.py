"""Which types layers may take instead of float32, and what time that saves.

Shapes: B rows, K inputs and N outputs of a layer.
"""

import gc
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch

from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.packed import Layers
from torchrec_handler.kernels.products import INT8_WEIGHTS, PACKED_WEIGHTS, Layer, is_fast
from torchrec_handler.options import KERNEL_DTYPES, KernelDtype

TIMED_ROWS = (128, 1000)
TIMES = 4
SECONDS_OF_TIMING = 0.05
"""For layers of one shape, and a number of rows."""

PAYS = 0.95
"""A type is taken where layers take at most so much of the time of a more precise one."""


class Move(NamedTuple):
    """A type for some layers."""

    names: frozenset[str]
    """Of the parameters that they are made of."""
    dtype: KernelDtype
    saves: float
    """Of the seconds a row in float32."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers of one type: of parameters that a graph makes one layer of."""

    names: frozenset[str]
    layers: dict[tuple[frozenset[str], torch.Size], Layer] = field(default_factory=dict)


def find_units(choice: Choice) -> list[Unit]:
    """All packed layers that are known by their parameters."""
    # A graph that was left out is gone then.
    gc.collect()
    units: list[Unit] = []
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
            units.append(Unit(names=names.union(*(one.names for one in near)), layers=layers))
    return sorted(units, key=lambda unit: sorted(unit.names))


def find_moves(unit: Unit) -> Iterator[Move]:
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
