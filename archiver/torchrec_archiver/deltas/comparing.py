"""Which rows of a checkpoint differ from an archive's once they are encoded, on all processors."""

import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from torchrec_archiver.checkpoint.pieces import BLOCK_BYTES, page_out
from torchrec_archiver.deltas.chain import State
from torchrec_archiver.progress import bar
from torchrec_handler.archive.delta import TableRows
from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.errors import BuildError
from torchrec_handler.tables.rows import encode_rows, find_invalid

AHEAD = 2
"""Blocks of each processor that are begun before the oldest is done: few, as memory holds them."""


class _Block(NamedTuple):
    """Rows of one table that lie behind one another."""

    entry: TableEntry
    start: int
    rows: torch.Tensor


def changed_rows(
    rows: Mapping[TableKey, torch.Tensor], state: State, *, progress: bool
) -> Iterator[TableRows]:
    """The rows that differ from a state's once they are encoded, block by block.

    Each processor has blocks of its own: torch would divide each of many short operations, and wait
    for the last part of every one.

    Args:
        rows: of each table, as `encode_rows` takes them, at least as many as the archive has.
        state: what they are compared with.
        progress: whether to show a bar.

    Raises:
        BuildError: a table has no rows, or some that its data type cannot hold.
    """
    entries = state.base.index.tables
    processors = len(os.sched_getaffinity(0))
    total = sum(entry.nbytes for entry in entries)
    pending: deque[Future[TableRows]] = deque()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        bar("comparing", total, "B", shown=progress) as compared,
        ThreadPoolExecutor(processors) as pool,
    ):
        try:
            for block in _blocks(rows, entries):
                pending.append(pool.submit(_changed, block, state))
                if len(pending) >= AHEAD * processors:
                    found = pending.popleft().result()
                    if len(found.ids):
                        yield found
                compared.update(len(block.rows) * block.entry.row_bytes)
            while pending:
                found = pending.popleft().result()
                if len(found.ids):
                    yield found
        finally:
            for each in pending:
                each.cancel()
            torch.set_num_threads(threads)


def _blocks(
    rows: Mapping[TableKey, torch.Tensor], entries: Sequence[TableEntry]
) -> Iterator[_Block]:
    for entry in entries:
        source = rows.get(entry.key)
        if source is None or source.shape[0] < entry.rows:
            held = "none" if source is None else str(source.shape[0])
            message = (
                f"table {entry.name!r}: received {held} rows, expected {entry.rows}, as the "
                "archive has"
            )
            raise BuildError(message)
        longest = max(1, source.stride(0), source.shape[1])
        step = max(1, BLOCK_BYTES // (longest * source.element_size()))
        for start in range(0, entry.rows, step):
            yield _Block(entry, start, source[start : min(start + step, entry.rows)])


def _changed(block: _Block, state: State) -> TableRows:
    entry, start, end = block.entry, block.start, block.start + len(block.rows)
    encoded = encode(entry, block.rows.contiguous(), start)
    page_out(block.rows)
    at = differing(encoded, state.block(entry, start, end))
    state.base.forget(entry, start, end)
    return TableRows(key=entry.key, ids=at + start, rows=encoded[at])


def encode(entry: TableEntry, rows: torch.Tensor, first: int | np.ndarray) -> np.ndarray:
    """Encode rows for a table.

    Args:
        entry: of the table.
        rows: [N, D] floating point, or encoded already.
        first: id of the first one, or the ids [N] of all, for messages.

    Returns:
        [N, row_bytes] uint8.

    Raises:
        BuildError: its data type cannot hold one.
    """
    if found := find_invalid(rows, entry.dtype):
        row = first + found.row if isinstance(first, int) else int(first[found.row])
        message = f"table {entry.name!r}, {entry.dtype}: {dataclasses.replace(found, row=row)}"
        raise BuildError(message)
    encoded: np.ndarray = encode_rows(rows, entry.dtype).numpy()
    return encoded


def differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which rows of two blocks [N, row_bytes] differ: [K] int64, ascending."""
    words = next(
        words
        for words in (np.uint64, np.uint32, np.uint16, np.uint8)
        if not one.shape[1] % np.dtype(words).itemsize
    )
    found = np.flatnonzero(one.view(words) != other.view(words))
    rows = found // (one.shape[1] // np.dtype(words).itemsize)
    is_first = np.ones(len(rows), bool)
    np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
    first: np.ndarray = rows[is_first]
    return first
