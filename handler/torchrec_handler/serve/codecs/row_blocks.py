"""Blocks of rows, each read into arrays, put together: as if all had been read at once."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.request import Columns, Mask

MOST_REPEATED = 2**21
"""Numbers, 16 MB."""


def count_ids(block: Columns, name: str) -> int:
    """Ids of a sparse input, what rows share counted for each of them."""
    counts = _counts(block, name)
    times = np.where(block.shared[name], block.batch_size or 1, 1)
    return int((counts * times).sum())


def check_repeated(name: str, numbers: int) -> None:
    """See that what some of the rows share does not become too much where each gets its own.

    Args:
        name: the input.
        numbers: that are added to those given.

    Raises:
        RequestTooLarge: too many.
    """
    if numbers > MOST_REPEATED:
        raise RequestTooLarge(
            said=f"shared by some rows, it would take {numbers} numbers more",
            where=name,
            expected=f"at most {MOST_REPEATED}",
            hint="share it by all, or send columns",
        )


def join(blocks: Sequence[Columns], given: AbstractSet[str], signature: Signature) -> Columns:
    """Columns of all rows.

    Args:
        blocks: of at least one row each, in order; a dense or embedding input of one row in a block
            of more is shared by them.
        given: names that rows have themselves.
        signature: what the model takes.

    Raises:
        InvalidRequest: an input is not equally wide in all.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    shared: dict[str, Mask] = {}
    for entry in signature.inputs:
        if "sparse" in entry.type:
            shared[entry.name] = np.logical_and.reduce(
                [block.shared[entry.name] for block in blocks]
            )
            arrays.update(_join_sparse(entry, blocks, shared[entry.name]))
        else:
            arrays[entry.name] = _join_dense(entry, blocks, given)
    rows = sum(block.batch_size or 0 for block in blocks)
    return Columns(arrays=arrays, shared=shared, batch_size=rows)


def _join_dense(
    entry: InputSignature, blocks: Sequence[Columns], given: AbstractSet[str]
) -> npt.NDArray[Any]:
    axis = 1 if entry.type == "embedding" else 0
    parts = [block.arrays[entry.name] for block in blocks]
    if given.isdisjoint({entry.name, *entry.features}) and parts[0].shape[axis] == 1:
        return parts[0]
    width = parts[0].shape[-1]
    first = 0
    whole = []
    for part, block in zip(parts, blocks, strict=True):
        if part.shape[-1] != width:
            raise InvalidRequest(
                where=entry.name,
                received=f"{part.shape[-1]} numbers in row {first}",
                expected=f"as many as in every row, {width}",
            )
        shape = list(part.shape)
        shape[axis] = block.batch_size or 0
        whole.append(np.broadcast_to(part, shape))
        first += shape[axis]
    check_repeated(entry.name, sum(map(np.size, whole)) - sum(map(np.size, parts)))
    return np.concatenate(whole, axis=axis)


def _join_sparse(
    entry: InputSignature, blocks: Sequence[Columns], shared: Mask
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    lengths = []
    sources = ["values", "weights"] if entry.type == "weighted_sparse" else ["values"]
    pieces: dict[str, list[list[npt.NDArray[Any]]]] = {source: [] for source in sources}
    for position, block in enumerate(blocks):
        rows = block.batch_size or 0
        of_block = block.arrays[f"{entry.name}.lengths"].reshape(-1, rows).copy()
        # Of what all blocks share the first one's is kept; what some rows give, others repeat.
        times = np.where(block.shared[entry.name], rows, 1)
        times[shared] = int(position == 0)
        repeated = times == rows
        of_block[repeated] = of_block[repeated, :1]
        of_block[times == 0] = 0
        lengths.append(of_block)
        ends = _counts(block, entry.name).cumsum()[:-1]
        for source, found in pieces.items():
            split = np.split(block.arrays[f"{entry.name}.{source}"], ends)
            found.append(
                [
                    part if count == 1 else np.tile(part, count)
                    for part, count in zip(split, times, strict=True)
                ]
            )
    yield f"{entry.name}.lengths", np.concatenate(lengths, axis=1).reshape(-1)
    for source, found in pieces.items():
        by_feature = [part for of_feature in zip(*found, strict=True) for part in of_feature]
        yield f"{entry.name}.{source}", np.concatenate(by_feature)


def _counts(block: Columns, name: str) -> npt.NDArray[Any]:
    """[F] ids that a block holds of each feature."""
    lengths = block.arrays[f"{name}.lengths"].reshape(-1, block.batch_size or 1)
    counts: npt.NDArray[Any] = lengths.sum(axis=1)
    return counts
