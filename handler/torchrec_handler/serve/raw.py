"""What is made of raw values: ids hashed, missing numbers filled in, lists without dropped ids.

Vectorised over all requests that are checked together. Letters in shapes: R requests, L lists that
a request gives of a feature, B or 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import Hashed, InputSignature
from torchrec_handler.hashing import Words, hash_each
from torchrec_handler.serve.request import Floats, Mask

Array = npt.NDArray[Any]


def of_each(of_features: Array, counts: Array, ids: int) -> Array:
    """What is said of features, of each of their ids, [N].

    Args:
        of_features: [F], or [1] for whatever feature.
        counts: ids of each request's features, [R, F].
        ids: of all, N.
    """
    if of_features.size == counts.shape[1]:
        return np.tile(of_features, len(counts)).repeat(counts.reshape(-1))
    return of_features.repeat(ids)


class Hashing:
    """Hashes the ids of those features of an input that are hashed."""

    def __init__(self, hashed: Sequence[Hashed | None]) -> None:
        """Take what the signature says of each feature, [F]."""
        self._is_hashed = np.array([entry is not None for entry in hashed], np.bool_)
        self._rows = np.array([entry.rows if entry else 1 for entry in hashed], np.uint64)
        self._seeds = np.array([entry.seed if entry else 0 for entry in hashed], np.uint64)

    def __call__(self, values: Array, counts: Array) -> Array:
        """The ids [N], of hashed features as rows.

        Args:
            values: as they came.
            counts: of each request's features, [R, F].
        """
        words: Words = values.astype(np.int64, copy=False).view(np.uint64)
        each = [of_each(said, counts, values.size) for said in (self._rows, self._seeds)]
        rows = hash_each(words, *each)
        if self._is_hashed.all():
            return rows
        return np.where(of_each(self._is_hashed, counts, values.size), rows, values)


def hashing(entry: InputSignature) -> Hashing | None:
    """What hashes an input's ids; None where they are rows already."""
    return Hashing(entry.hashed) if entry.hashed else None


def defaults(entry: InputSignature) -> Floats | None:
    """What stands for a missing number of each feature [F], NaN where it may not be missing."""
    if not entry.defaults:
        return None
    return np.array([np.nan if one is None else one for one in entry.defaults], np.float32)


def filled(floats: Floats, defaults: Floats) -> Floats:
    """Numbers [..., F] with those that are missing, NaN, filled in."""
    return np.where(np.isnan(floats), defaults, floats)


def shortened(lengths: Array, dropped: Mask) -> Array:
    """Lengths [R, F, L] of the lists without what is dropped of all ids, [N]."""
    ends = lengths.reshape(-1).cumsum()
    before = np.concatenate(([0], dropped.cumsum()))
    removed = before[ends] - before[ends - lengths.reshape(-1)]
    left: Array = lengths - removed.reshape(lengths.shape)
    return left
