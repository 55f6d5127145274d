"""A thread of each worker: the elected one's writes the deltas of a folder into the live copy."""

import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from torchrec_handler.archive.delta import Delta, Head, check_delta, check_signed, read_delta
from torchrec_handler.archive.format import TABLES, Index
from torchrec_handler.errors import DeltaError, LoadError, Unusable
from torchrec_handler.histogram import Histogram
from torchrec_handler.updates.arrivals import Arrivals
from torchrec_handler.updates.gate import open_lock
from torchrec_handler.updates.live import Live
from torchrec_handler.updates.samples import SampleTest
from torchrec_handler.updates.weights import Weights
from torchrec_handler.updates.workers import Seat, missing

logger = logging.getLogger(__name__)

ELECTED = "follower"
REFUSED = ".refused"
REASONS = (
    *("base", "run", "previous", "fork", "damaged", "signature"),
    *("table", "ids", "values", "dense", "samples"),
)
"""Why deltas are refused: `DeltaError.reason`."""
PAUSES = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOUCHED_SECONDS = 10.0
LONGEST_SECONDS = 10.0
"""That workers are waited for until they have dense weights ready."""
LATER = 1.0
"""Seconds until what failed is tried again."""


@dataclass
class Counts:
    """What a worker's thread did since it started. Another thread may read it meanwhile."""

    rows: int = 0
    deltas: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By the reason of `DeltaError`."""
    pause: Histogram = field(default_factory=lambda: Histogram(PAUSES))
    """Seconds of each that workers were kept from starting a forward call."""
    waited: float = 0.0
    """Seconds of it that running forward calls took."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a live copy is made of."""

    archive: Path
    """The archive's folder."""
    index: Index
    base: str
    """The digest of the index's file."""
    dense: Mapping[str, torch.Tensor]
    """The archive's own weights."""
    deltas: Path
    """The folder that they are published in."""
    keys: Sequence[Path]
    """Public keys, of which one has to have signed a delta; none where it needs no signature."""


class Follower:
    """Follows a folder of deltas."""

    def __init__(
        self,
        live: Live,
        source: Source,
        weights: Weights[Any],
        samples: SampleTest | None = None,
    ) -> None:
        """Prepare it.

        Args:
            live: the copy, as it was opened for this thread.
            source: what that is made of.
            weights: its dense weights.
            samples: what each delta is tried with before it is served; None: with nothing.
        """
        self.live, self._control, self._source = live, live.control, source
        self._samples = samples
        self._weights, self._seat = weights, Seat(live.folder)
        self._arrivals = Arrivals(source.deltas, source.base)
        self._lock = open_lock(live.folder / ELECTED)
        self.is_elected = False
        self.counts = Counts()
        self._touched = 0.0

    def step(self) -> bool:
        """Do what there is to do; whether the live copy is all that the folder makes it."""
        control = self._control
        if time.monotonic() > self._touched + TOUCHED_SECONDS:
            self._touched = time.monotonic()
            with suppress(FileNotFoundError):
                os.utime(self.live.folder)  # by which others see that it is not left
        if not self.is_elected:
            if not self._elect():
                self._prepare(control.preparing or control.served_dense)
                return bool(control.copy and control.caught_up)
            control.caught_up = control.preparing = 0
        self._mend()
        self._prepare(control.served_dense)
        if self._samples:
            self._samples.prepare()
        while (found := self._arrivals.next(self._control, self._refuse)) is not None:
            self._take(*found)
        self._control.caught_up = 1
        return True

    def resign(self) -> None:
        """Let another one be elected."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self.is_elected = False

    def _elect(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.is_elected = True
        self._control.writer = os.getpid()
        return True

    def _mend(self) -> None:
        """Make the copy, and finish what another one left."""
        if self._control.copy and self._control.turns % 2:
            try:
                self.live.redo()
            except Unusable as error:
                logger.error("%s; the live copy is made again", error)  # noqa: TRY400  known
                self._control.copy = 0
        if not self._weights.are_there(self._control.served_dense):
            logger.error("%s: its dense weights are gone; it is made again", self.live.path)
            self._control.copy = 0
        if not self._control.copy:
            began = time.perf_counter()
            self.live.make(self._source.archive / TABLES)
            seconds = time.perf_counter() - began
            logger.info("%s: made in %.1f s", self.live.path, seconds)

    def _take(self, path: Path, head: Head) -> None:
        try:
            if self._source.keys:
                check_signed(path, self._source.keys)
            delta = read_delta(path)
            if delta.head != head:  # another file meanwhile
                self._arrivals.look_again(path)
                return
            check_delta(delta, self._source.index, self._source.dense)
            dense = self._lay(delta) if delta.dense else self._control.served_dense
            self._try(delta, dense)
        except DeltaError as error:
            self._control.preparing = 0
            self._refuse(path, error)
            return
        self.live.touch(delta)
        self.live.apply(delta, dense)
        self._control.preparing = 0
        self._weights.keep(dense)
        self._arrivals.took(path, delta.head)
        self.counts.deltas += 1
        self.counts.rows += sum(len(table.ids) for table in delta.tables)
        self.counts.pause.add(self._control.pause / 1e6)
        self.counts.waited += self._control.waited / 1e6

    def _prepare(self, number: int) -> None:
        """Have dense weights ready, before a forward call needs them."""
        try:
            self._weights.make(number)
        except FileNotFoundError:  # there are newer ones already
            return
        self._seat.tell(number)

    def _lay(self, delta: Delta) -> int:
        """Lay dense weights beside the copy, for all workers to get ready."""
        control = self._control
        control.numbers += 1
        self._weights.write(control.numbers, control.served_dense, delta.dense)
        control.preparing = control.numbers
        return control.numbers

    def _try(self, delta: Delta, number: int) -> None:
        """Try a delta with samples, and get its dense weights ready."""
        try:
            if self._samples:
                self._samples.check(delta, number)
            if delta.dense:
                self._prepare(number)
        except LoadError as error:
            message = f"{delta.path.name}: {error}"
            raise DeltaError(message, reason="dense") from error
        if delta.dense:
            self._wait(delta, number)

    def _wait(self, delta: Delta, number: int) -> None:
        """Wait until all workers have dense weights ready.

        One that takes too long makes them before its next forward call.
        """
        end = time.monotonic() + LONGEST_SECONDS
        while (left := missing(self.live.folder, number)) and time.monotonic() < end:
            time.sleep(0.005)
        if left:
            logger.warning("%s: %d workers do not have its weights ready", delta.path.name, left)

    def _refuse(self, path: Path, error: DeltaError) -> None:
        logger.error("Delta refused (%s): %s", error.reason, error)
        self.counts.refused[error.reason] += 1
        try:
            path.rename(path.with_name(path.name + REFUSED))
        except OSError as why:
            logger.warning("%s: cannot be renamed (%s)", path, why.strerror)
            self._arrivals.ignore(path)


class Following:
    """The thread."""

    def __init__(self, follower: Follower, seconds: float) -> None:
        """Start it.

        Args:
            follower: what is done.
            seconds: between two looks.
        """
        self.follower, self._seconds = follower, seconds
        self.ready = threading.Event()
        """The live copy is all that the folder makes it, or cannot be."""
        self.failure: Exception | None = None
        """Why not."""
        self._is_over = threading.Event()
        # It never keeps a worker from ending.
        self._thread = threading.Thread(target=self._run, name="torchrec-updates", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._seconds
        while not self._is_over.wait(pause if self.ready.is_set() else min(pause, 0.01)):
            pause = self._seconds
            try:
                if self.follower.step():
                    self.ready.set()
                self.failure = None
            except Exception as error:
                if self.failure is None:
                    logger.exception("Updates stand still")
                self.failure = error
                self.ready.set()
                pause = max(LATER, pause)
