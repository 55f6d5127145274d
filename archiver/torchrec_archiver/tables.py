"""Sixth step of building: quantize tables block by block, straight into `tables.bin`."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from torchrec_archiver.checkpoint.pieces import BLOCK_BYTES, page_out
from torchrec_archiver.progress import bar
from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.errors import BuildError
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.rows import (
    InvalidRow,
    check_kind,
    decode_rows,
    encode_rows,
    encoded_rows,
    find_invalid,
)

logger = logging.getLogger(__name__)

HUGE_PAGE_BYTES = 2 * 2**20
"""What is written as a whole page stays one in memory, and lookups in such pages wait less."""


def write_tables(
    path: Path,
    entries: Sequence[TableEntry],
    rows: Mapping[TableKey, torch.Tensor],
    *,
    progress: bool,
    allowed: Collection[str] = (),
) -> list[TableEntry]:
    """Encode rows into a file laid out by its entries.

    Args:
        path: the file to make.
        entries: where each table goes, and in which data type.
        rows: as `encode_rows` takes them, at least as many as the entry holds; a pruned table
            keeps its first ones.
        progress: whether to show a bar.
        allowed: names of tables that may hold rows which their data type cannot; errors are then
            those of all other values.

    Returns:
        The entries with their largest and mean absolute error against float rows.

    Raises:
        BuildError: an entry has no rows, or some that its data type cannot hold.
        WeightsError: its rows are no floating point numbers.
    """
    measured = []
    pending = bytearray()
    total = sum(entry.nbytes for entry in entries)
    with path.open("wb") as file, bar("tables", total, "B", shown=progress) as written:
        for entry in entries:
            source = rows.get(entry.key)
            if source is None:
                message = f"table {entry.name!r}: has no rows; give a checkpoint with --weights"
                raise BuildError(message)
            check_kind(entry.name, source)
            is_valid = True
            pending += bytes(entry.offset - file.tell() - len(pending))
            largest, total_error, count = 0.0, 0.0, 0
            step = max(1, BLOCK_BYTES // (entry.width * source.element_size()))
            for start in range(0, entry.rows, step):
                mapped = source[start : min(start + step, entry.rows)]
                block = mapped.contiguous()
                if is_valid and (found := find_invalid(block, entry.dtype)):
                    is_valid = False
                    found = dataclasses.replace(found, row=start + found.row)
                    _refuse(entry.name, found, allowed)
                encoded = encode_rows(block, entry.dtype)
                pending += encoded.numpy().data
                whole = len(pending) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
                file.write(pending[:whole])
                del pending[:whole]
                if block.is_floating_point():
                    off = decode_rows(encoded, entry.dtype).sub_(block.float()).abs_()
                    if not is_valid:
                        off = off[off.isfinite()]
                    count += off.numel()
                    largest = max(largest, float(off.max()) if off.numel() else 0.0)
                    total_error += float(off.sum(dtype=torch.float64))
                page_out(mapped)
                written.update(encoded.numel())
            if source.is_floating_point():
                mean = total_error / max(1, count)
                measured.append(dataclasses.replace(entry, max_error=largest, mean_error=mean))
            else:
                measured.append(entry)
        file.write(pending)
    return measured


def check_sharded(collections: Collections, allowed: Collection[str]) -> None:
    """Check the rows of a module that its factory sharded, which stay where they are.

    Raises:
        BuildError: a row that is not finite.
    """
    for lookup in collections.lookups:
        tables = zip(encoded_rows(lookup), lookup.first_rows, strict=False)
        for (name, dtype, rows), first_row in tables:
            if found := find_invalid(rows, dtype):
                found = dataclasses.replace(found, row=first_row + found.row)
                _refuse(name, found, allowed)


def _refuse(name: str, found: InvalidRow, allowed: Collection[str]) -> None:
    message = f"table {name!r}, {found.dtype}: {found}"
    if name not in allowed:
        message += f"; --allow-invalid-rows {name} takes the table as it is"
        raise BuildError(message)
    logger.warning("%s; it is taken as it is", message)
