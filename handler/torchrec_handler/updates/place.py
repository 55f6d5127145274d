"""Folders of live copies: each held while a worker needs it, gone once the next one is made."""

import fcntl
import os
import shutil
import time
from pathlib import Path

from torchrec_handler.errors import OptionError
from torchrec_handler.updates.live import live_folder, prefix_of

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LEFT_SECONDS = 600.0
"""A copy that nobody has held for so long is not waited for by workers that start again."""


def hold_folder(place: Path, model: str, base: str, deltas: Path) -> tuple[Path, int]:
    """Make the folder of a live copy, or share in it; see `live_folder` for what is given.

    Copies of the model that no process has held for `LEFT_SECONDS`, those of other archives, are
    removed.

    Returns:
        The folder, and a file descriptor that holds it while it is open.

    Raises:
        OptionError: it cannot be made, or is somebody else's.
    """
    folder = live_folder(place, model, base, deltas)
    try:
        while True:
            folder.mkdir(mode=0o700, exist_ok=True)
            held = os.open(folder, FOLDER)
            fcntl.flock(held, fcntl.LOCK_SH)
            if folder.exists() and os.path.samestat(folder.stat(), os.fstat(held)):
                break
            os.close(held)  # removed before it was held
    except OSError as error:
        message = (
            f"torchrec.updates.place: received {str(place)!r}, in which no folder can be made "
            f"({error.strerror})"
        )
        raise OptionError(message) from error
    if os.fstat(held).st_uid != os.geteuid():
        os.close(held)
        message = f"torchrec.updates.place: {folder} belongs to another user"
        raise OptionError(message)
    for other in place.glob(f"{prefix_of(model)}*"):
        if other != folder:
            _remove_if_left(other)
    return folder, held


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder, FOLDER)
    except OSError:  # another user's, no folder, or gone already
        return
    try:
        found = os.fstat(lock)
        is_left = time.time() - found.st_mtime > LEFT_SECONDS
        if is_left and found.st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
