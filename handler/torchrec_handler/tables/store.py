"""Encoded tables and their layout, the same for every plan.

All tables lie in one buffer of bytes: `tables.bin`, mapped read-only and shared by every worker,
or, for an archive without one, memory of this process. Row layout is FBGEMM's for its CPU
inference lookup (`IntNBitTableBatchedEmbeddingBagsCodegen` with a row alignment of 1), which
reads any table at any offset of a buffer, so one buffer serves every plan.
"""

import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    rounded_row_size_in_bytes,
)

from torchrec_handler.archive.format import TableEntry, TableKey, align
from torchrec_handler.errors import WeightsError
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.mapped import MappedFile
from torchrec_handler.tables.pages import MADV_POPULATE_READ, advise, map_at
from torchrec_handler.tables.rows import NAMES, check_kind, encode_rows, find_invalid

KEPT_SHARE = 0.75
"""How much of a machine's memory tables may take and still stay there as a whole."""

BLOCK = 2**25


@dataclass(frozen=True, kw_only=True)
class TableStore:
    """Encoded tables and where each lies."""

    entries: Mapping[TableKey, TableEntry]
    buffer: torch.Tensor
    """[bytes] uint8, on the CPU."""
    file: MappedFile | None = None
    """What it is mapped from; None in memory of this process."""

    @classmethod
    def map(cls, path: Path, entries: Sequence[TableEntry]) -> "TableStore":
        """Map `tables.bin` read-only; nothing is read until a lookup touches it.

        In huge pages where the kernel has them for files: a lookup of random rows then waits less
        for addresses than in memory of the process. Each first touch reads 2 MiB, which would be
        waste for tables that memory cannot keep.
        """
        if not path.stat().st_size:  # which cannot be mapped
            return cls(entries=_by_key(entries), buffer=torch.empty(0, dtype=torch.uint8))
        with path.open("rb") as file:
            watched = MappedFile(path, file.fileno())
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if is_kept(mapped.size()):
            with suppress(OSError):  # a kernel without huge pages
                mapped.madvise(mmap.MADV_HUGEPAGE)
        with warnings.catch_warnings():
            # Nobody writes to it; `torch.from_file` would, and asks for a file that lets it.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            buffer = torch.frombuffer(mapped, dtype=torch.uint8)
        return cls(entries=_by_key(entries), buffer=buffer, file=watched)

    @classmethod
    def encode(
        cls, entries: Sequence[TableEntry], rows: Mapping[TableKey, torch.Tensor]
    ) -> "TableStore":
        """Encode rows into memory of this process.

        Args:
            entries: the tables, each with its place.
            rows: of each table, as `encode_rows` takes them; of a pruned table the first ones are
                kept.

        Raises:
            WeightsError: an entry has no rows, rows of another shape, or some that its data type
                cannot hold.
        """
        size = max((entry.offset + entry.nbytes for entry in entries), default=0)
        store = cls(entries=_by_key(entries), buffer=torch.empty(size, dtype=torch.uint8))
        for key, entry in store.entries.items():
            if key not in rows:
                message = (
                    f"table {entry.name!r}: has no weights; the factory leaves it on the meta "
                    "device, so build the archive with --weights"
                )
                raise WeightsError(message)
            own = rows[key]
            width = entry.row_bytes if own.dtype == torch.uint8 else entry.width
            if own.shape[0] < entry.rows or own.shape[1] != width:
                message = (
                    f"table {entry.name!r}: received weights of shape {tuple(own.shape)}, "
                    f"expected ({entry.rows}, {width})"
                )
                raise WeightsError(message)
            check_kind(entry.name, own)
            if found := find_invalid(own[: entry.rows], entry.dtype):
                message = f"table {entry.name!r}, {entry.dtype}: {found}"
                raise WeightsError(message)
            store.rows(entry).copy_(encode_rows(own[: entry.rows], entry.dtype))
        return store

    def switch(self, path: Path) -> None:
        """Map another file in the place of the one that `map` did.

        At the same addresses, so that everything that looks rows up, or has read where they are,
        finds those of the other file. No lookup may run meanwhile.

        Raises:
            OSError: it cannot be mapped, or is of another size.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != self.buffer.numel():
                message = f"{path}: received {size} bytes, expected {self.buffer.numel()}"
                raise OSError(message)
            map_at(self.buffer.data_ptr(), size, mmap.PROT_READ, file.fileno())
        if is_kept(size):
            advise(self.buffer.data_ptr(), size, mmap.MADV_HUGEPAGE)

    def bring(self) -> None:
        """Let this process know where in memory all pages of the file are, before lookups ask."""
        size = self.buffer.numel()
        for start in range(0, size if is_kept(size) else 0, BLOCK):
            # Piece by piece, as nobody else gets memory of the system meanwhile.
            advise(self.buffer.data_ptr() + start, min(BLOCK, size - start), MADV_POPULATE_READ)

    def rows(self, entry: TableEntry) -> torch.Tensor:
        """One table's rows, [rows, row_bytes] uint8, a view."""
        block = self.buffer[entry.offset : entry.offset + entry.nbytes]
        return block.view(entry.rows, entry.row_bytes)


def is_kept(size: int) -> bool:
    """Whether tables of so many bytes stay in this machine's memory as a whole."""
    return size < KEPT_SHARE * _memory_bytes()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def layout(collections: Collections) -> list[TableEntry]:
    """Lay out the tables of quantized, not yet sharded collections, one block behind another."""
    entries: list[TableEntry] = []
    offset = 0
    for lookup in collections.lookups:
        for name, rows, width, sparse_type, _ in lookup.operator.embedding_specs:
            row_bytes = rounded_row_size_in_bytes(
                width, sparse_type, 1, lookup.operator.scale_bias_size_in_bytes
            )
            entry = TableEntry(
                collection=lookup.collection,
                name=name,
                rows=rows,
                width=width,
                dtype=NAMES[sparse_type],
                row_bytes=row_bytes,
                offset=offset,
            )
            entries.append(entry)
            offset = align(offset + entry.nbytes)
    return entries


def _by_key(entries: Sequence[TableEntry]) -> dict[TableKey, TableEntry]:
    return {entry.key: entry for entry in entries}
