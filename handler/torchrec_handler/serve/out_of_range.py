"""Counts ids outside of their tables, which tells of a client and a model that do not fit.

Letters in shapes: R requests, F features, N ids.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature
from torchrec_handler.serve.measure import SPARSE
from torchrec_handler.serve.request import Mask


class OutOfRange:
    """How many there were of each feature, since it was made. Another thread may read it."""

    def __init__(self, inputs: Iterable[InputSignature]) -> None:
        self._features = {
            entry.name: entry.features or (entry.name,) for entry in inputs if entry.type in SPARSE
        }
        names = (name for features in self._features.values() for name in features)
        self._counts = dict.fromkeys(names, 0)
        self._waiting: list[tuple[str, int]] = []
        self._is_last = True

    def counts(self) -> dict[str, int]:
        """Feature -> ids; of an input whose features have no names, the input."""
        return dict(self._counts)

    def begin(self, *, is_last: bool = True) -> None:
        """Requests are checked, perhaps once more since one of them was refused.

        Args:
            is_last: whether one that is refused now is not checked again.
        """
        self._waiting.clear()
        self._is_last = is_last

    def add(self, name: str, bad: Mask, counts: npt.NDArray[np.int64], *, is_refused: bool) -> None:
        """Count those of an input.

        Args:
            name: of the input.
            bad: [N] which ids are outside.
            counts: [R, F] ids of each request's features, one request behind another.
            is_refused: whether these requests are refused; else `keep` adds them.
        """
        features = np.tile(np.arange(counts.shape[1]), len(counts)).repeat(counts.reshape(-1))
        found = np.bincount(features[bad], minlength=counts.shape[1]).tolist()
        names = self._features[name]
        by_name = (
            zip(names, found, strict=True) if len(names) == len(found) else [(name, sum(found))]
        )
        self._waiting += [(feature, count) for feature, count in by_name if count]
        if is_refused and self._is_last:
            self.keep()

    def keep(self) -> None:
        """What was counted since `begin` is so."""
        for feature, count in self._waiting:
            self._counts[feature] += count
        self._waiting.clear()
