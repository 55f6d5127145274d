"""Processes that write rows of a live copy, and die of it: `python -m tests.support.updating`.

Rows of all tables of a generation hold its number, so a reader sees what is mixed. Nothing here
imports torch.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.updates.live import Generation, Live

ROWS, ROW_BYTES, TABLES = 500, 68, 8
ENTRIES = {
    TableKey("tables", f"t{number}"): TableEntry(
        collection="tables",
        name=f"t{number}",
        rows=ROWS,
        width=ROW_BYTES - 4,
        dtype="int8",
        row_bytes=ROW_BYTES,
        offset=number * (ROWS * ROW_BYTES + 112),
    )
    for number in range(TABLES)
}
SIZE = TABLES * (ROWS * ROW_BYTES + 112)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Of a generation."""

    sequence: int
    digest: str
    run: str = "run"
    created: float = 1.5e9


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The whole of a table."""

    key: TableKey
    ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A generation whose file holds its number."""

    path: Path
    head: Head
    tables: Sequence[Rows]


def publish(folder: Path, sequence: int) -> Path:
    """Put a generation into a folder."""
    path = folder / f"{sequence:08d}.delta"
    path.write_text(str(sequence), encoding="ascii")
    return path


def read(path: Path) -> Generation:
    """Open one."""
    sequence = int(path.read_text(encoding="ascii"))
    rows = np.full((ROWS, ROW_BYTES), sequence % 251, np.uint8)
    tables = [Rows(key=key, ids=np.arange(ROWS), rows=rows) for key in ENTRIES]
    return Filled(path=path, head=Head(sequence=sequence, digest=f"{sequence:064x}"), tables=tables)


def open_live(folder: Path, kind: type[Live] = Live) -> Live:
    """The live copy of a folder, made if it is not there."""
    (folder / "live").mkdir(exist_ok=True)
    live = kind(folder / "live", ENTRIES, folder, read)
    if not live.control.copy:
        (folder / "tables.bin").write_bytes(bytes(SIZE))
        live.make(folder / "tables.bin")
    live.open()
    return live


class Slow(Live):
    """Rests after each table, as rows of more tables would take longer."""

    def _write(self, delta: Generation) -> None:
        for table in delta.tables:
            self._tables[table.key][table.ids] = table.rows
            time.sleep(0.0002)
        super()._write(delta)


class Dying(Live):
    """Is killed half way, by itself."""

    def _write(self, delta: Generation) -> None:
        for table in delta.tables[: TABLES // 2]:
            self._tables[table.key][table.ids] = table.rows
        os.kill(os.getpid(), signal.SIGKILL)


KINDS: dict[str, type[Live]] = {"slow": Slow, "dying": Dying}


def main(folder: Path, kind: str, count: int) -> None:
    """Publish and write so many generations behind what is served."""
    live = open_live(folder, KINDS[kind])
    for _ in range(count):
        live.enter()
        live.leave()
        live.apply(read(publish(folder, live.control.served + 1)), 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
