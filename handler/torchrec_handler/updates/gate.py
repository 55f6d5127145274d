"""Keeps forward calls and whoever writes rows apart, in all processes of a machine.

Locks are the kernel's (`flock`), so those of a process that is killed are free. A writer first
takes the turnstile, at which those who come later wait: else forward calls of several workers, one
always before the other's end, would let it wait for long.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_handler.updates.control import Control

TURN, LOCK = "turn", "lock"


class Gate:
    """One thread's way in; each thread has its own, as two of one would let each other in."""

    def __init__(self, folder: Path, control: Control) -> None:
        """Open the locks of a folder, which are made where they are missing."""
        self._control = control
        self._turn, self._lock = (open_lock(folder / name) for name in (TURN, LOCK))

    def enter(self) -> None:
        """Wait until nobody writes; nobody will before `leave`."""
        if self._control.wants:
            fcntl.flock(self._turn, fcntl.LOCK_SH)
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def leave(self) -> None:
        """Let others write."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def closed(self) -> Iterator[float]:
        """Keep all others out, inside of a `with` block; gives the seconds waited for them."""
        began = time.perf_counter()
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            self._control.wants = 1
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield time.perf_counter() - began
            finally:
                self._control.wants = 0
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)


def open_lock(path: Path) -> int:
    """A file to lock, which is made where it is missing; it is never removed by itself."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
