"""The archive that deltas change, read and not run."""

import hashlib
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
    tables: np.ndarray
    """[bytes] uint8, mapped."""

    @property
    def entries(self) -> dict[TableKey, TableEntry]:
        """Of each table."""
        return {entry.key: entry for entry in self.index.tables}

    def rows(self, entry: TableEntry) -> np.ndarray:
        """[rows, row_bytes] uint8, a view."""
        block = self.tables[entry.offset : entry.offset + entry.nbytes]
        return block.reshape(entry.rows, entry.row_bytes)


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
        yield Base(
            folder=folder,
            package=found.package,
            index=found.index,
            digest=hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
            dense=read_dense(folder / DENSE),
            tables=np.memmap(folder / TABLES, np.uint8, "r"),
        )
