"""The ordinary way, to compare with: each worker reads its tables into memory of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch

from torchrec_handler.archive import TableEntry
from torchrec_handler.load.tables import TableStore

TABLES = "tables.pt"


def hold_tables() -> None:
    """Let every archive that this process loads read its tables as everybody does."""

    def read(cls: type[TableStore], path: Path, entries: Sequence[TableEntry]) -> TableStore:
        by_key = {(entry.collection, entry.name): entry for entry in entries}
        return cls(entries=by_key, buffer=torch.load(path.with_name(TABLES)))

    TableStore.map = classmethod(read)  # type: ignore[method-assign,assignment]
