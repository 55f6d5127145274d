"""The control page of a live copy: which generation its rows are, for all workers of a machine.

Only the standard library is used. A number is eight bytes, which a processor writes at once; what
several numbers say together is read and written in the gate.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Any

PAGE = 4096
CONTROL = "control"
WORD = 8


class _Number:
    """A number from 0 to 2^64 - 1."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, page: Any, owner: Any) -> int:
        number: int = page.words[self._place]
        return number

    def __set__(self, page: Any, value: int) -> None:
        page.words[self._place] = value


class _Text:
    """A text, of so many bytes at most."""

    def __init__(self, offset: int, most: int) -> None:
        self._offset, self._most = offset, most

    def __get__(self, page: Any, owner: Any) -> str:
        (length,) = struct.unpack_from("<Q", page.memory, self._offset)
        start = self._offset + WORD
        return bytes(page.memory[start : start + min(length, self._most)]).decode()

    def __set__(self, page: Any, value: str) -> None:
        content = value.encode()
        if len(content) > self._most:
            message = f"received a text of {len(content)} bytes, expected at most {self._most}"
            raise ValueError(message)
        start = self._offset + WORD
        page.memory[start : start + len(content)] = content
        struct.pack_into("<Q", page.memory, self._offset, len(content))


class Control:
    """A page of shared memory; of one that was never written to all is 0 and empty."""

    copy = _Number(0)
    """Which copy of the archive's tables is there, counted from 1; 0: none."""
    turns = _Number(1)
    """Odd while rows are being written."""
    wants = _Number(2)
    """Whether somebody waits to write."""
    served = _Number(3)
    """The sequence of the rows; 0: they are the archive's."""
    served_dense = _Number(4)
    """The number of the dense weights beside the copy; 0: they are the archive's."""
    served_created = _Number(5)
    """When `served` was made, in microseconds since 1970."""
    applying = _Number(6)
    applying_dense = _Number(7)
    applying_created = _Number(8)
    preparing = _Number(9)
    """The number of the dense weights that workers are to get ready; 0: none."""
    caught_up = _Number(10)
    """Whether the folder's deltas were all looked at since a worker was elected."""
    redone = _Number(11)
    """Deltas that were written again, as their writer ended half way."""
    rows = _Number(12)
    """Rows that were written since the copy was made."""
    deltas = _Number(13)
    """Deltas that were written since then."""
    pause = _Number(14)
    """Microseconds that the last delta kept workers from starting a forward call."""
    waited = _Number(15)
    """Microseconds of it that the last writer waited for running forward calls."""
    pauses = _Number(16)
    """Microseconds of all pauses."""
    copies = _Number(17)
    """How many copies were made."""
    writer = _Number(18)
    """The process whose thread is elected, or was last."""
    published = _Number(19)
    """The newest sequence that was found in the folder."""
    gap_since = _Number(20)
    """Since when deltas wait for one that is missing, in microseconds since 1970; 0: none does."""
    numbers = _Number(21)
    """How many dense weights were laid beside the copy."""
    served_sha256 = _Text(1024, 64)
    """The digest that the next delta names as its previous one; empty: that of the archive."""
    applying_sha256 = _Text(1152, 64)
    run = _Text(1280, 128)
    """Of the deltas that are served; empty: of none yet."""
    applying_name = _Text(1536, 255)
    """The delta's file."""
    applying_run = _Text(2048, 128)

    def __init__(self, folder: Path) -> None:
        """Map the page of a folder, which is made where it is missing.

        Raises:
            OSError: it cannot be.
        """
        file = os.open(folder / CONTROL, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size < PAGE:
                os.ftruncate(file, PAGE)
            self._map = mmap.mmap(file, PAGE)
        finally:
            os.close(file)
        self.memory = memoryview(self._map)
        self.words = self.memory.cast("Q")
