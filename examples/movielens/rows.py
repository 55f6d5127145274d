"""Rows in TorchRec's layout, because training, tests and requests must agree on it.

Shapes: B rows, F sparse features, D dense features, N ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Request: TypeAlias = dict[str, list[list[float]] | list[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Examples to score, as columns."""

    dense: NDArray[np.float32]
    """[B, D]."""

    lengths: NDArray[np.int32]
    """[F, B], the number of ids of each feature in each row."""

    values: NDArray[np.int32]
    """[N], the ids, feature by feature and row by row as `KeyedJaggedTensor` wants them."""

    label: NDArray[np.float32]
    """[B], 1 for a click; zeros when it is not known."""

    def __len__(self) -> int:
        """Return B."""
        return len(self.label)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """[F, B], where in `values` the ids of a feature and row begin."""
        flat = self.lengths.ravel()
        return (np.cumsum(flat, dtype=np.int64) - flat).reshape(self.lengths.shape)

    def take(self, index: NDArray[np.int64] | slice) -> Rows:
        """Return the rows at `index`, in its order."""
        lengths = self.lengths[:, index]
        return Rows(
            dense=self.dense[index],
            lengths=lengths,
            values=take_bags(self.values, self._starts[:, index].ravel(), lengths.ravel()),
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
