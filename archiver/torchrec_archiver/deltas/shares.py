"""What ranks have of the tables that they train, brought together on rank 0.

Letters in shapes: N ids, D width.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from torchrec_handler.errors import BuildError


class Touched(NamedTuple):
    """Rows of a shard, or of a part of their columns."""

    name: str
    """The table's, as the model's `state_dict` has it."""
    ids: np.ndarray
    """[N] int64: rows of the whole table."""
    column: int
    """The first of them."""
    rows: torch.Tensor
    """[N, width of the shard] floating point, on the CPU."""


def shards(name: str, value: Any) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First row, first column and rows of what this rank has of a table.

    Raises:
        BuildError: it has several parts, whose rows are not told apart.
    """
    if not isinstance(value, ShardedTensor):
        yield 0, 0, value.detach()
        return
    local = value.local_shards()
    if len({shard.metadata.shard_offsets[0] for shard in local}) > 1:
        message = f"{name}: has shards of different rows on one rank, whose ids are the same"
        raise BuildError(message)
    for shard in local:
        row, column = shard.metadata.shard_offsets
        yield row, column, shard.tensor


def joined(name: str, parts: Sequence[Touched], width: int) -> tuple[np.ndarray, torch.Tensor]:
    """Whole rows [N, D] of what ranks sent, by their ids [N], ascending.

    Raises:
        BuildError: columns of a row are missing.
    """
    ids = np.unique(np.concatenate([part.ids for part in parts]))
    rows = torch.empty(len(ids), width, dtype=parts[0].rows.dtype)
    held = np.zeros((len(ids), width), bool)
    for part in parts:
        at = np.searchsorted(ids, part.ids)
        columns = slice(part.column, part.column + part.rows.shape[1])
        rows[torch.from_numpy(at), columns] = part.rows
        held[at, columns] = True
    if not held.all():
        row = ids[int((~held.all(axis=1)).argmax())]
        message = f"{name}: row {row} was touched on some of the ranks that hold its columns alone"
        raise BuildError(message)
    return ids, rows


def gathered(touched: list[Touched], rank: int) -> list[Touched]:
    """What all ranks touched, on rank 0; nothing elsewhere."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return touched
    several: list[list[Touched]] | None = [[]] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(touched, several)
    return [part for parts in several or () for part in parts]


def agree(failure: Exception | None) -> None:
    """Raise on all ranks what rank 0 met.

    Raises:
        BuildError: on the others, with its message.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if failure is not None:
            raise failure
        return
    said = [None if failure is None else str(failure)]
    dist.broadcast_object_list(said)
    if failure is not None:
        raise failure
    if said[0] is not None:
        message = f"rank 0: {said[0]}"
        raise BuildError(message)
