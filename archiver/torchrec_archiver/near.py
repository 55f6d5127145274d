"""What a wrong path, name or file system most likely needs: hints of errors."""

import shutil
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from torchrec_handler.errors import ArchiveError

MOST = 5
"""Names in a hint."""


def near_path(path: Path) -> str | None:
    """What may have been meant by a path; None for one that is there."""
    if path.exists():
        return None
    parent = path.parent
    while not parent.exists():
        path, parent = parent, parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return None
    where = parent.resolve()
    if close := get_close_matches(path.name, names, n=1):
        return f"did you mean {parent / close[0]}?"
    if not names:
        return f"{where} is empty"
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{where} holds {', '.join(names[:MOST])}{more}"


def check_there(archive: Path) -> None:
    """See that a path leads somewhere.

    Raises:
        ArchiveError: it does not; with what may have been meant.
    """
    if not archive.exists():
        message = f"archive: {archive} does not exist"
        raise ArchiveError(message, hint=near_path(archive))


def near_name(name: str, known: Iterable[str], what: str) -> str | None:
    """What may have been meant by a name, else those that there are; None where there is none."""
    names = list(known)
    if close := get_close_matches(name, names, n=1, cutoff=0.5):
        return f"did you mean {close[0]}?"
    return f"its {what} are {', '.join(names[:MOST])}" if names else None


def room(folder: Path) -> str:
    """How much more a folder can hold."""
    free = shutil.disk_usage(folder).free
    return f"{free / 1e9:,.1f} GB are free in {folder}; TMPDIR names another folder to work in"
