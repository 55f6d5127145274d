"""A line of deltas, published one behind another."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.delta import TableRows, read_head, write_delta
from torchrec_handler.archive.format import TableEntry

EXPONENT = 0x7C
"""Of a float16, in its second byte: all of these bits set is what is not finite."""


class Line:
    """What a trainer publishes."""

    def __init__(self, folder: Path, base: str) -> None:
        """Begin behind the archive.

        Args:
            folder: of deltas.
            base: digest of the archive's index.
        """
        self.folder, self.base, self.previous = folder, base, base
        self.run = str(uuid.uuid4())
        self.sequence = 0

    def publish(self, tables: Sequence[TableRows] = (), **others: Any) -> Path:
        """The next delta; others are `write_delta`'s, in the place of what follows."""
        given = {
            "base": self.base,
            "run": self.run,
            "sequence": self.sequence + 1,
            "previous": self.previous,
            "tables": tables,
            **others,
        }
        path = write_delta(self.folder, **given)
        head = read_head(path)
        self.sequence, self.previous = head.sequence, head.digest
        return path


def drawn(
    entry: TableEntry,
    count: int,
    dice: np.random.Generator,
    ids: npt.NDArray[np.int64] | None = None,
) -> TableRows:
    """Random rows of an int8 table, whose scales and biases are finite and small.

    Args:
        entry: the table.
        count: how many rows, drawn, beside those of `ids`.
        dice: draws.
        ids: rows that are among them.
    """
    chosen = dice.choice(entry.rows, min(count, entry.rows), replace=False).astype(np.int64)
    chosen = np.unique(chosen if ids is None else np.concatenate([chosen, ids]))
    rows = dice.integers(0, 256, (len(chosen), entry.row_bytes), dtype=np.uint8)
    rows[:, :4] = (
        np.stack([dice.uniform(0.001, 0.01, len(chosen)), dice.uniform(-1, 0, len(chosen))], axis=1)
        .astype(np.float16)
        .view(np.uint8)
    )
    return TableRows(key=entry.key, ids=chosen, rows=rows)
