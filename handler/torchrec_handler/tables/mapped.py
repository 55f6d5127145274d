"""The file that tables are mapped from, watched for what others do to it.

A mapping shows what is written into its file at once, and a lookup behind a shortened file's end
ends the process (SIGBUS). A file that takes the name of a mapped one changes nothing.
"""

import os
import time
import weakref
from pathlib import Path

from torchrec_handler.errors import Unusable

SECONDS = 0.05
"""It is looked at no more often: in a microsecond or two, or what a network takes."""


class MappedFile:
    """A file as it was when it was mapped."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Keep what it is like.

        Args:
            path: for messages.
            descriptor: of the file, which may be closed afterwards.
        """
        self._path = path
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._size, self._written = self._look()
        self._looked = time.monotonic()

    def check(self) -> None:
        """See that nobody has written to it, where it was not looked at for `SECONDS`.

        Raises:
            Unusable: somebody has, so that lookups give what was never checked.
        """
        now = time.monotonic()
        if now - self._looked < SECONDS:
            return
        self._looked = now
        size, written = self._look()
        if size != self._size:
            what = f"received {size} bytes, expected {self._size}"
        elif written != self._written:
            what = f"written to {(written - self._written) / 1e9:.1f} s after it was last before"
        else:
            return
        message = (
            f"{self._path}: {what}; it was changed while it was served. Give new tables a new "
            "version, or put a file in its place by renaming it"
        )
        raise Unusable(message)

    def forget(self) -> None:
        """Give back the memory that keeps what was read of it, as nothing maps it any more."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns
