"""What all rows of a request share, told to the lookups, which then look it up once.

A predict module makes its KeyedJaggedTensors itself, of tensors that hold what is shared once a
row, and may do anything with them. Only a collection that is given exactly those tensors looks
shared ids up in the first row of each request and copies the result down.

Shapes: B rows, F features, D the sum of the features' widths, N ids.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

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
    sources: torch.Tensor
    """[F, B] int64, which row's ids a row has: where they are shared its request's first one's."""

    @property
    def own(self) -> torch.Tensor:
        """[F, B] bool, where a row's ids are its own."""
        return self.sources == torch.arange(self.sources.shape[1])

    def is_given(self, features: KeyedJaggedTensor) -> bool:
        """Whether these are the input's own tensors, to which nobody has written."""
        weights = features.weights_or_none()
        return (
            len(features.keys()) == len(self.sources)
            and _is_same(features.lengths_or_none(), self.lengths)
            and _is_same(features.values(), self.values)
            and (weights is None or _is_same(weights, self.weights))
        )

    def without_copies(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The features, with empty lists wherever a row has the ids of another one."""
        own = self.own.reshape(-1)
        _, values, weights = torch.ops.fbgemm.permute_1D_sparse_data(
            own.nonzero().reshape(-1).int(),
            self.lengths,
            self.values,
            features.weights_or_none(),
        )
        return KeyedJaggedTensor(
            keys=features.keys(), lengths=self.lengths * own, values=values, weights=weights
        )

    def copy_rows(
        self, pooled: torch.Tensor, positions: Sequence[int], widths: Sequence[int]
    ) -> None:
        """Fill in, in place, what was looked up in another row.

        Args:
            pooled: [B, D]
            positions: of each block of columns, which feature of the input it is.
            widths: of each block of columns.
        """
        is_whole = self.own.all(dim=1).tolist()
        for position, block in zip(
            positions, torch.split(pooled, list(widths), dim=1), strict=True
        ):
            if not is_whole[position]:
                block.copy_(block.index_select(0, self.sources[position]))


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
