"""Temporary folders that a kill leaves behind no longer than until the next of their kind is made.

A folder is locked while a process that needs it lives, and a lock ends with its process; a process
id, which repeats in containers, would not tell.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder inside of a `with` block, locked while this process lives, gone after it.

    Args:
        parent: where it is made.
        prefix: of its name, which no other program gives its folders.

    Raises:
        OSError: none can be made there.
    """
    folder, lock = make_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def make_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a locked folder, and remove those of its kind that nobody holds any more.

    Returns:
        The folder, and the file descriptor of its lock.
    """
    entrance = os.open(parent, os.O_RDONLY)
    try:
        # One at a time looks for stale folders and makes its own, so that none removes another's
        # that is not locked yet.
        fcntl.flock(entrance, fcntl.LOCK_EX)
        _remove_stale(parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        return folder, hold(folder)
    finally:
        os.close(entrance)


def hold(folder: Path) -> int:
    """Share in a folder's lock: it is not stale while this file descriptor is open anywhere."""
    lock = os.open(folder, FOLDER)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _remove_stale(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        try:
            lock = os.open(folder, FOLDER)
        except OSError:  # another user's, none that was made here, or gone already
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(lock)
