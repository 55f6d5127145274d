"""Contenders in one process that take turns, so that what the machine does beside falls on all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SHORT_SECONDS = 0.01
"""A shorter call is made once before those that are timed: it finds its weights in no cache."""

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One contender's calls."""

    times_first: float
    """How much faster than the first contender: the median of the ratios within the turns."""
    median_us: float


def take_turns(
    contenders: Mapping[str, Sequence[Call]], turns: int, seconds: float
) -> dict[str, Timed]:
    """Time calls that were made before.

    Args:
        contenders: name -> calls that are made one after another, over and over.
        turns: of each contender, in another order each time.
        seconds: that a turn of the first contender takes, or one call where that is longer.
    """
    first, *_ = contenders
    once = min(_time(call) for call in contenders[first])
    times = max(1, round(seconds / once))
    generator = np.random.default_rng(0)
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name in generator.permutation(list(contenders)).tolist():
            spent[name].append(_turn(contenders[name], times, warm_up=once < SHORT_SECONDS))
    return {
        name: Timed(
            times_first=statistics.median(
                of_first / own for of_first, own in zip(spent[first], medians, strict=True)
            ),
            median_us=statistics.median(medians) * 1e6,
        )
        for name, medians in spent.items()
    }


def _turn(calls: Sequence[Call], times: int, *, warm_up: bool) -> float:
    """The median of so many calls."""
    if warm_up:
        calls[-1]()
    return statistics.median(_time(calls[number % len(calls)]) for number in range(times))


def _time(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
