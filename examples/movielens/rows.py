"""Rows in TorchRec's layout, because training, tests and requests must agree on it.

Shapes: B rows, F sparse features, D dense features, N ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Request: TypeAlias = dict[str, list[list[float]] | list[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bags:
    """Ids of sparse features, as `KeyedJaggedTensor` wants them."""

    lengths: NDArray[np.int32]
    """[F, B], the number of ids of each feature in each row."""

    values: NDArray[np.int32]
    """[N], the ids, feature by feature and row by row."""

    @classmethod
    def join(cls, features: Sequence[Bags | NDArray[np.integer[Any]]]) -> Bags:
        """Put features of the same rows one behind another; an array [B] has one id a row."""
        bags = [
            feature
            if isinstance(feature, Bags)
            else Bags(
                lengths=np.ones((1, len(feature)), dtype=np.int32), values=feature.astype(np.int32)
            )
            for feature in features
        ]
        return Bags(
            lengths=np.concatenate([bag.lengths for bag in bags]),
            values=np.concatenate([bag.values for bag in bags]),
        )

    def __len__(self) -> int:
        """Return B."""
        return int(self.lengths.shape[1])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """[F, B], where in `values` the ids of a feature and row begin."""
        flat = self.lengths.ravel()
        return (np.cumsum(flat, dtype=np.int64) - flat).reshape(self.lengths.shape)

    def take(self, index: NDArray[np.int64] | slice) -> Bags:
        """Return the rows at `index`, in its order."""
        lengths = self.lengths[:, index]
        return Bags(
            lengths=lengths,
            values=take_bags(self.values, self._starts[:, index].ravel(), lengths.ravel()),
        )

    def instances(self, features: Sequence[str]) -> list[dict[str, list[int]]]:
        """Return one object a row, as a request in JSON rows holds them.

        Args:
            features: F names, in the order of `lengths`.
        """
        bags = np.split(self.values, np.cumsum(self.lengths)[:-1])
        columns = [bags[start : start + len(self)] for start in range(0, len(bags), len(self))]
        return [
            {name: bag.tolist() for name, bag in zip(features, row, strict=True)}
            for row in zip(*columns, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows(Bags):
    """Examples to score, as columns."""

    dense: NDArray[np.float32]
    """[B, D]."""

    label: NDArray[np.float32]
    """[B], 1 for a click; zeros when it is not known."""

    def take(self, index: NDArray[np.int64] | slice) -> Rows:
        """Return the rows at `index`, in its order."""
        bags = super().take(index)
        return Rows(
            lengths=bags.lengths,
            values=bags.values,
            dense=self.dense[index],
            label=self.label[index],
        )

    def request(self) -> Request:
        """Return the body of a request in JSON columns, without the labels."""
        return {
            "float_features": self.dense.tolist(),
            "id_list_features.lengths": self.lengths.ravel().tolist(),
            "id_list_features.values": self.values.tolist(),
        }


def take_bags(
    values: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Concatenate `values[start : start + length]` of every pair in `starts` and `lengths`."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    taken: NDArray[np.int32] = values[
        np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
    ]
    return taken
