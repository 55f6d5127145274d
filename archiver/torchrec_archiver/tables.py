"""Fourth step of building: quantize tables block by block, straight into `tables.bin`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from torchrec_handler.archive import TableEntry
from torchrec_handler.errors import BuildError
from torchrec_handler.load.tables import encode_rows

BLOCK_BYTES = 64 * 2**20
"""Float bytes that are read, encoded and written at a time."""


def write_tables(
    path: Path,
    entries: Sequence[TableEntry],
    rows: Mapping[tuple[str, str], torch.Tensor],
    *,
    progress: bool,
) -> None:
    """Encode rows into a file laid out by its entries.

    Args:
        path: the file to make.
        entries: where each table goes, and in which data type.
        rows: (collection, table name) -> rows as `encode_rows` takes them, at least as many as
            the entry holds; a pruned table keeps its first ones.
        progress: whether to show a bar.

    Raises:
        BuildError: an entry has no rows.
    """
    total = sum(entry.nbytes for entry in entries)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="tables", disable=not progress)
    with path.open("wb") as file, bar:
        for entry in entries:
            source = rows.get((entry.collection, entry.name))
            if source is None:
                message = f"table {entry.name!r}: has no rows; give a checkpoint with --weights"
                raise BuildError(message)
            file.seek(entry.offset)
            step = max(1, BLOCK_BYTES // (entry.width * source.element_size()))
            for start in range(0, entry.rows, step):
                block = encode_rows(source[start : min(start + step, entry.rows)], entry.dtype)
                file.write(block.numpy().data)
                bar.update(block.numel())
