"""The archive that deltas change, read and not run."""

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from torchrec_archiver.answer import unpacked
from torchrec_handler.archive.format import DENSE, INDEX, TABLES, Index, TableEntry, TableKey
from torchrec_handler.archive.verify import verify
from torchrec_handler.errors import ArchiveError
from torchrec_handler.load.loader import read_dense


@dataclass(frozen=True, kw_only=True)
class Base:
    """An archive, checked."""

    folder: Path
    package: Path
    index: Index
    digest: str
    """What its deltas call `base`."""
    dense: Mapping[str, torch.Tensor]
    mapped: mmap.mmap
    """`tables.bin`."""
    tables: np.ndarray
    """[bytes] uint8, a view of it."""

    @property
    def entries(self) -> dict[TableKey, TableEntry]:
        """Of each table."""
        return {entry.key: entry for entry in self.index.tables}

    def rows(self, entry: TableEntry) -> np.ndarray:
        """[rows, row_bytes] uint8, a view."""
        block = self.tables[entry.offset : entry.offset + entry.nbytes]
        return block.reshape(entry.rows, entry.row_bytes)

    def forget(self, entry: TableEntry, start: int, end: int) -> None:
        """Let the pages of rows go, so that what is compared does not fill this process."""
        first = (entry.offset + start * entry.row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        self.mapped.madvise(mmap.MADV_DONTNEED, first, entry.offset + end * entry.row_bytes - first)


@contextmanager
def open_base(archive: Path, keys: Sequence[Path] = ()) -> Iterator[Base]:
    """Open an archive inside of a `with` block; a .mar or .tar.gz is unpacked for so long.

    Args:
        archive: a .mar, a .tar.gz or a folder.
        keys: public keys, of which one has to have signed it; none where it needs no signature.

    Raises:
        ArchiveError: it is not what it says it is, or has no tables that a delta could change.
    """
    with unpacked(archive) as folder:
        found = verify(folder, keys=keys)
        if found.index is None or not found.index.tables:
            why = "has no index" if found.index is None else "holds no tables"
            message = f"archive: {archive} {why}, so no delta can change it"
            raise ArchiveError(message, hint="build a new version instead")
        with (folder / TABLES).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        yield Base(
            folder=folder,
            package=found.package,
            index=found.index,
            digest=hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
            dense=read_dense(folder / DENSE),
            mapped=mapped,
            tables=np.frombuffer(mapped, np.uint8),
        )
