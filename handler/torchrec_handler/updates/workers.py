"""Which workers there are, and which dense weights each of them has ready."""

import fcntl
import os
import struct
import uuid
from pathlib import Path

WORKERS = "workers"
_number = struct.Struct("<Q")


class Seat:
    """A worker's own file, locked while its process lives."""

    def __init__(self, folder: Path) -> None:
        """Take a seat beside a live copy.

        Raises:
            OSError: its file cannot be made.
        """
        seats = folder / WORKERS
        seats.mkdir(mode=0o700, exist_ok=True)
        name = uuid.uuid4().hex
        made = seats / f".{name}"
        self._file = os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        made.rename(seats / name)

    def tell(self, number: int) -> None:
        """Say which weights are ready."""
        os.pwrite(self._file, _number.pack(number), 0)


def missing(folder: Path, number: int) -> int:
    """How many living workers do not have some weights ready; files of others are removed."""
    found = 0
    for path in (folder / WORKERS).glob("[!.]*"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            content = os.pread(file, _number.size, 0)
            found += len(content) < _number.size or _number.unpack(content)[0] != number
        else:
            path.unlink(missing_ok=True)
        finally:
            os.close(file)
    return found
