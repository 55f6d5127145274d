"""The live copy of an archive's tables: what workers look rows up in, and what deltas change.

It can be thrown away at any time, as it is the archive's tables with the deltas of a folder
written into them. A delta is durable before the control page says that its rows are being written,
so whoever finds them half written writes them again, from the same file.
"""

import ctypes
import hashlib
import mmap
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.errors import Unusable
from torchrec_handler.tables.pages import MADV_COLLAPSE, advise, map_at
from torchrec_handler.updates.control import Control
from torchrec_handler.updates.gate import Gate

LIVE = "live.bin"
NEW = ".new"
BOOT = Path("/proc/sys/kernel/random/boot_id")
BLOCK = 2**26
SECTOR = 512
"""Bytes that `st_blocks` counts in."""
HUGE_PAGE_BYTES = 2**21


class Rows(Protocol):
    """Changed rows of one table; `archive.delta.TableRows` is."""

    @property
    def key(self) -> TableKey:
        """Of which table."""

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """[K], strictly ascending."""

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """[K, row_bytes]."""


class Head(Protocol):
    """What a delta says of itself; `archive.delta.Head` is."""

    @property
    def sequence(self) -> int:
        """The generation that it leads to."""

    @property
    def digest(self) -> str:
        """What the next delta calls its previous one."""

    @property
    def run(self) -> str:
        """The line of deltas that it belongs to."""

    @property
    def created(self) -> float:
        """Seconds since 1970."""


class Generation(Protocol):
    """What leads to a generation; `archive.delta.Delta` is."""

    @property
    def path(self) -> Path:
        """Its file."""

    @property
    def head(self) -> Head:
        """What it says of itself."""

    @property
    def tables(self) -> Sequence[Rows]:
        """Changed rows."""


Read = Callable[[Path], Generation]
"""Opens a delta, and checks that it is whole."""


def live_folder(place: Path, model: str, base: str, deltas: Path) -> Path:
    """Where the live copy of a model lies.

    Args:
        place: a folder in shared memory.
        model: its name.
        base: sha256 of the archive's index.
        deltas: the folder that they come from.
    """
    boot = BOOT.read_text(encoding="ascii") if BOOT.exists() else ""
    # What another boot left may be half on the disk, and other deltas make another copy.
    kind = hashlib.sha256(f"{boot}\n{deltas.resolve()}".encode()).hexdigest()
    return place / f"{prefix_of(model)}{base[:16]}-{kind[:8]}"


def prefix_of(model: str) -> str:
    """How the folders of a model's live copies begin."""
    return f"{re.sub(r'[^A-Za-z0-9_.]', '_', model)}-"


class Live:
    """A live copy, as one thread uses it."""

    def __init__(
        self, folder: Path, entries: Mapping[TableKey, TableEntry], deltas: Path, read: Read
    ) -> None:
        """Open it.

        Args:
            folder: see `live_folder`; it is there.
            entries: where tables lie in it.
            deltas: the folder that they come from.
            read: opens a delta.

        Raises:
            OSError: its files cannot be opened, or made.
        """
        self.folder, self.control = folder, Control(folder)
        self.gate = Gate(folder, self.control)
        self._entries, self._deltas, self._read = entries, deltas, read
        self.redone = 0
        """Deltas that were written again by this thread."""
        self._copy = 0
        self._tables: dict[TableKey, npt.NDArray[np.uint8]] = {}

    @property
    def path(self) -> Path:
        """The file that lookups map."""
        return self.folder / LIVE

    def enter(self) -> None:
        """Wait until rows are those of one generation, and keep them so until `leave`.

        Raises:
            Unusable: they were left half written, and the delta is not there any more.
        """
        self.gate.enter()
        while self.control.turns % 2:
            self.gate.leave()
            self.redo()
            self.gate.enter()

    def leave(self) -> None:
        """Let rows change."""
        self.gate.leave()

    def make(self, tables: Path) -> None:
        """Copy the archive's tables, of which the copy is generation 0.

        By the one who is elected alone. What nobody maps of the archive leaves memory behind the
        copying, as both need not be there at once.

        Raises:
            OSError: there is no room.
        """
        made = self.path.with_suffix(NEW)
        made.unlink(missing_ok=True)
        with tables.open("rb") as source, made.open("x+b") as target:
            os.fchmod(target.fileno(), 0o600)
            size = os.fstat(source.fileno()).st_size
            # A tmpfs with huge=within_size has huge pages of what lies within a file's size.
            target.truncate(max(size, 1))
            for start in range(0, size, BLOCK):
                _copy(source.fileno(), target.fileno(), start, min(start + BLOCK, size))
        with self.gate.closed():
            control = self.control
            control.copies += 1
            control.copy = 0
            made.replace(self.path)
            control.turns += control.turns % 2
            control.served = control.served_dense = control.served_created = 0
            control.served_sha256 = control.run = ""
            control.copy = control.copies

    def made_bytes(self) -> int:
        """How much of a copy that is being made is there."""
        try:
            return self.path.with_suffix(NEW).stat().st_blocks * SECTOR
        except FileNotFoundError:
            return 0

    def open(self) -> None:
        """Map the copy for writing, so that it need not be done while workers wait."""
        if self._copy == self.control.copy:
            return
        copy = self.control.copy
        with self.path.open("r+b") as file:
            whole = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        self._tables = {
            key: whole[entry.offset : entry.offset + entry.nbytes].reshape(-1, entry.row_bytes)
            for key, entry in self._entries.items()
            if entry.nbytes
        }
        self._copy = copy

    def touch(self, delta: Generation) -> None:
        """Bring the places of rows into this process, where it costs nobody's time."""
        self.open()
        for table in delta.tables:
            if len(table.ids):
                rows = self._tables[table.key]
                for column in (0, -1):  # the last byte may lie on the next page
                    int(rows[table.ids, column].max())

    def apply(self, delta: Generation, dense: int) -> None:
        """Write a delta's rows; forward calls are of the generation before it or behind it.

        Args:
            delta: one that leads on from what is served, checked.
            dense: the number of the dense weights from then on.
        """
        control, head = self.control, delta.head
        self.open()
        with self.gate.closed() as waited:
            began = time.perf_counter()
            control.applying = head.sequence
            control.applying_dense = dense
            control.applying_created = int(head.created * 1e6)
            control.applying_sha256 = head.digest
            control.applying_run = head.run
            control.applying_name = delta.path.name
            control.turns += 1
            self._write(delta)
            pause = waited + time.perf_counter() - began
        control.waited, control.pause = int(waited * 1e6), int(pause * 1e6)
        control.pauses += control.pause

    def redo(self) -> None:
        """Write a delta again whose writer ended half way.

        Raises:
            Unusable: it is not there any more, or another one.
        """
        control = self.control
        with self.gate.closed():
            if control.turns % 2 == 0:
                return
            path = self._deltas / control.applying_name
            try:
                self.open()
                delta = self._read(path)
                found = delta.head.digest
            except Exception as error:
                message = f"{path}: its rows are half written, and it cannot be read ({error})"
                raise Unusable(message) from error
            if found != control.applying_sha256:
                message = f"{path}: its rows are half written, and it is another delta now"
                raise Unusable(message)
            self._write(delta)
            control.redone += 1
            self.redone += 1

    def _write(self, delta: Generation) -> None:
        """With the gate closed and `turns` odd."""
        control = self.control
        for table in delta.tables:
            if len(table.ids):
                self._tables[table.key][table.ids] = table.rows
            control.rows += len(table.ids)
        control.served = control.applying
        control.served_dense = control.applying_dense
        control.served_created = control.applying_created
        control.served_sha256 = control.applying_sha256
        control.run = control.applying_run
        control.deltas += 1
        control.turns += 1


def _copy(source: int, target: int, start: int, end: int) -> None:
    """Copy bytes into a new file, and leave those of the old one to nobody's memory.

    Raises:
        OSError: there is no room.
    """
    os.posix_fallocate(target, start, end - start)  # no bus error later for want of room
    os.lseek(target, start, os.SEEK_SET)
    at = start
    while at < end:
        at += os.sendfile(target, source, at, end - at)
    os.posix_fadvise(source, start, end - start, os.POSIX_FADV_DONTNEED)
    _collapse(target, start, end - start)


def _collapse(file: int, start: int, size: int) -> None:
    """Ask for huge pages of what is written, which a tmpfs gives so whatever it is mounted with.

    Only where addresses lie in huge pages as the file does; a kernel without them does nothing.
    """
    with mmap.mmap(-1, size + HUGE_PAGE_BYTES) as reserved:
        first = ctypes.addressof(held := ctypes.c_char.from_buffer(reserved))
        del held  # which would keep it from being closed
        aligned = -(-first // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        with suppress(OSError):
            map_at(aligned, size, mmap.PROT_READ | mmap.PROT_WRITE, file, start)
            advise(aligned, size, MADV_COLLAPSE)
