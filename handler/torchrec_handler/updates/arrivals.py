"""Which delta of a folder is next."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from torchrec_handler.archive.delta import Head, list_deltas, read_head, sequence_of
from torchrec_handler.errors import DeltaError
from torchrec_handler.updates.control import Control

logger = logging.getLogger(__name__)

SETTLED = 0.1
"""Seconds after which a folder's time of change is another one if it changes again."""
LONGEST = 10.0
"""Seconds until a folder is listed in any case: over a network its time may be an old one."""

RECENT = 100
"""Generations behind what is served of which it is seen that a file is another one."""

Version = tuple[int, int]
"""A file's number and its time."""
GONE: Version = (0, 0)
Refuse = Callable[[Path, DeltaError], None]


class Arrivals:
    """What is new in a folder of deltas."""

    def __init__(self, folder: Path, base: str) -> None:
        """Prepare to look.

        Args:
            folder: of deltas.
            base: digest of the archive's index.
        """
        self._folder, self._base = folder, base
        self._done: dict[str, Version] = {}
        """Name -> what need not be looked at again, unless it is another file."""
        self._waiting: dict[Path, Head] = {}
        self._digests: dict[int, str] = {0: base}
        """Of generations that were served, as far as they are known."""
        self._is_first = True
        self._changed, self._listed = -1, 0.0

    def next(self, control: Control, refuse: Refuse) -> tuple[Path, Head] | None:
        """The delta that leads on from what is served, the furthest if there are several.

        Args:
            control: tells what is served, and is told what there is.
            refuse: is given those that never will.

        Raises:
            DeltaError: the folder cannot be read.
        """
        served, digest = control.served, control.served_sha256 or self._base
        self._digests[served] = digest
        self._look(served, control.run, refuse)
        found: tuple[Path, Head] | None = None
        for path, head in list(self._waiting.items()):
            if head.from_sequence > served + 1:
                continue  # nearly all of thousands that a new copy waits for
            if head.follows(served, digest):
                if found is None or head.sequence > found[1].sequence:
                    found = path, head
            elif head.sequence <= served:
                self.ignore(path)
                self._compare(path, head, refuse)
            elif head.from_sequence <= served + 1:
                del self._waiting[path]
                message = (
                    f"{path.name}: follows {_short(head.digest_at(served))} as generation {served},"
                    f" but {_short(digest)} is served; it belongs to another line of deltas"
                )
                refuse(path, DeltaError(message, reason="previous"))
        newest = max((head.sequence for head in self._waiting.values()), default=0)
        control.published = max(newest, served)
        is_gap = found is None and bool(self._waiting)
        control.gap_since = (control.gap_since or int(time.time() * 1e6)) if is_gap else 0
        return found

    def took(self, path: Path, head: Head) -> None:
        """Know that a delta is served."""
        self.ignore(path)
        for sequence in range(head.from_sequence, head.sequence + 1):
            if found := head.digest_at(sequence):
                self._digests[sequence] = found

    def look_again(self, path: Path) -> None:
        """Read a file's head once more."""
        self._waiting.pop(path, None)
        self._changed = -1

    def ignore(self, path: Path) -> None:
        """Never look at a file again."""
        self._done[path.name] = _version(path)
        self._waiting.pop(path, None)

    def _look(self, served: int, run: str, refuse: Refuse) -> None:
        now = time.time()
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            changed = -1  # listing it says why
        is_settled = now - changed / 1e9 > SETTLED and now - self._listed < LONGEST
        if changed == self._changed and is_settled:
            return
        paths = list_deltas(self._folder)
        self._changed, self._listed = changed, now
        names = {path.name for path in paths}
        self._done = {name: known for name, known in self._done.items() if name in names}
        self._waiting = {path: head for path, head in self._waiting.items() if path.name in names}
        for path in paths:
            if path in self._waiting:
                continue
            sequence = sequence_of(path)
            if self._is_first and sequence <= served:
                self.ignore(path)  # what was served before this worker was
                continue
            known, version = self._done.get(path.name), _version(path)
            is_known = known and (sequence <= served - RECENT or known == version)
            if is_known or version == GONE:
                continue
            try:
                head = read_head(path)
                self._check(path, head, run)
            except DeltaError as error:
                refuse(path, error)
            else:
                self._waiting[path] = head
        self._is_first = False

    def _check(self, path: Path, head: Head, run: str) -> None:
        if head.base != self._base:
            message = (
                f"{path.name}: was made for the archive {_short(head.base)}, this is "
                f"{_short(self._base)}"
            )
            raise DeltaError(message, reason="base")
        if run and head.run != run:
            message = f"{path.name}: is of the run {head.run}, but {run} is served"
            raise DeltaError(message, reason="run")

    def _compare(self, path: Path, head: Head, refuse: Refuse) -> None:
        """See that what is behind what is served is what was served."""
        for sequence, known in self._digests.items():
            told = head.digest_at(sequence)
            if told is not None and told != known:
                message = (
                    f"{path.name}: is {_short(told)} as generation {sequence}, but "
                    f"{_short(known)} was served; it belongs to another line of deltas"
                )
                refuse(path, DeltaError(message, reason="fork"))
                return
        logger.info("%s: was served before", path.name)


def _version(path: Path) -> Version:
    try:
        found = path.stat()
    except OSError:
        return GONE
    return found.st_ino, found.st_mtime_ns


def _short(digest: str | None) -> str:
    return f"{digest[:16]}…" if digest else "nothing"
