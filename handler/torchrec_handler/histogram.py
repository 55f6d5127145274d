"""Values counted as Prometheus counts them."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """How many values there were up to each of some bounds, as Prometheus counts them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = (*bounds, float("inf"))
        self.sum = 0.0
        self._counts = [0] * len(self.bounds)

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def counts(self) -> list[int]:
        """Of each bound, how many values were no larger; the last one counts all."""
        return list(accumulate(self._counts))
