"""What all rows of a request share, told to the lookups, which then look it up once.

A predict module makes its KeyedJaggedTensors itself, of tensors that hold what is shared once a
row, and may do anything with them. Only a collection that is given exactly those tensors looks
shared ids up in the first row of each request and copies the result down.

Shapes: R requests, B rows of all of them, F features, D the sum of their widths, N ids.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedInput:
    """A sparse input of the batch with features that requests gave once for all their rows."""

    lengths: torch.Tensor
    """[F * B], on the CPU, as the predict module gets it."""
    values: torch.Tensor
    """[N]"""
    weights: torch.Tensor | None = None
    """[N], None for an input of type `sparse`."""
    rows: npt.NDArray[np.int64]
    """[R] of each request, in order."""
    shared: npt.NDArray[np.bool_]
    """[R, F] what each request gave once."""

    def is_given(self, features: KeyedJaggedTensor) -> bool:
        """Whether these are the input's own tensors, to which nobody has written."""
        weights = features.weights_or_none()
        return (
            len(features.keys()) == self.shared.shape[1]
            and _is_same(features.lengths_or_none(), self.lengths)
            and _is_same(features.values(), self.values)
            and (weights is None or _is_same(weights, self.weights))
        )

    def without_copies(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The features, of what is shared the lists of each request's first row only."""
        kept = np.repeat(~self.shared.T, self.rows, axis=1)
        kept[:, np.cumsum(self.rows) - self.rows] = True
        _, values, weights = torch.ops.fbgemm.permute_1D_sparse_data(
            torch.from_numpy(np.flatnonzero(kept).astype(np.int32)),
            self.lengths,
            self.values,
            features.weights_or_none(),
        )
        return KeyedJaggedTensor(
            keys=features.keys(),
            lengths=self.lengths * torch.from_numpy(kept.reshape(-1)),
            values=values,
            weights=weights,
        )

    def copy_rows(
        self, pooled: torch.Tensor, positions: Sequence[int], widths: Sequence[int]
    ) -> None:
        """Give, in place, what was looked up in each request's first row to its other rows.

        Args:
            pooled: [B, D]
            positions: of each block of columns, which feature of the input it is.
            widths: of each block of columns.
        """
        columns = np.cumsum([0, *widths])
        ends = np.cumsum(self.rows)
        shared = self.shared[:, positions]
        # Where runs of shared blocks start and end, by turns.
        request, block = np.nonzero(np.diff(shared, axis=1, prepend=False, append=False))
        for at, left, right in zip(
            request[::2], columns[block[::2]], columns[block[1::2]], strict=True
        ):
            run = pooled[ends[at] - self.rows[at] : ends[at], left:right]
            run[1:] = run[0]


_inputs: ContextVar[Sequence[SharedInput]] = ContextVar("shared inputs", default=())


@contextmanager
def look_up_once(inputs: Sequence[SharedInput]) -> Iterator[None]:
    """Tell the lookups of one forward call what is shared."""
    token = _inputs.set(inputs)
    try:
        yield
    finally:
        _inputs.reset(token)


def find_shared(features: KeyedJaggedTensor) -> SharedInput | None:
    """The input that a KeyedJaggedTensor holds as it was given."""
    return next((shared for shared in _inputs.get() if shared.is_given(features)), None)


def _is_same(tensor: torch.Tensor | None, given: torch.Tensor | None) -> bool:
    return (
        tensor is not None
        and given is not None
        and tensor.data_ptr() == given.data_ptr()
        and tensor.shape == given.shape
        and tensor.dtype == given.dtype
        # Counts what was written, through any view; an inference tensor does not.
        and not given.is_inference()
        and given._version == 0  # noqa: SLF001  torch has no other name for it
    )
