"""What a worker's forward calls go through, so that each is of one generation."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from torchrec_handler.archive.delta import list_deltas, read_delta
from torchrec_handler.archive.format import DENSE, INDEX, SAMPLES, TABLES, Index, sha256
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.errors import LoadError, OptionError, Unusable
from torchrec_handler.load.loader import load_again, read_dense
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.self_test import tolerance_of
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options, Updates
from torchrec_handler.tables.store import TableStore
from torchrec_handler.updates.follow import Counts, Follower, Following, Source
from torchrec_handler.updates.live import Live
from torchrec_handler.updates.place import hold_folder
from torchrec_handler.updates.room import check_room
from torchrec_handler.updates.samples import Recorded, SampleTest, replay_served
from torchrec_handler.updates.weights import Weights

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Model(NamedTuple, Generic[T]):
    """What is served, and how to make it with other weights."""

    first: T
    """With the archive's."""
    build: Callable[[Mapping[str, torch.Tensor]], T]
    """With those of a delta."""
    test: Callable[[Live, Weights[T]], SampleTest] | None = None
    """Makes what each delta is tried with before it is served; None: with nothing."""


class Served(Generic[T]):
    """Entered before forward calls and left behind them, by the thread that serves."""

    def __init__(
        self,
        live: Live,
        store: TableStore,
        weights: Weights[T],
        held: int,
        following: Following,
    ) -> None:
        """Begin with the archive's own rows.

        Args:
            live: the copy, opened for this thread.
            store: what lookups read.
            weights: what this worker has ready.
            held: the file descriptor that keeps the copy's folder.
            following: the thread that writes.
        """
        self._live, self._control, self._store = live, live.control, store
        self._weights, self._held, self.following = weights, held, following
        self._dense, self.model = weights.ready
        """To be called until `leave`, in `model`; the number of its dense weights."""
        self._copy = 0
        self.sequence = 0
        """Of the forward calls since `enter`."""

    def enter(self) -> None:
        """Wait until rows are those of one generation, and keep them so until `leave`.

        Raises:
            Unusable: the live copy is lost, so that another worker has to make it.
        """
        while True:
            self._live.enter()
            try:
                if self._is_whole():
                    return
            except BaseException:
                self._live.leave()
                raise
            number = self._control.served_dense
            self._live.leave()
            self._make(number)

    def leave(self) -> None:
        """Let rows change."""
        self._live.leave()

    def ready(self) -> None:
        """Wait until what is published is served.

        Raises:
            LoadError: it cannot be.
        """
        began = time.perf_counter()
        self.following.ready.wait()
        if self.following.failure is not None:
            message = f"torchrec.updates: {self.following.failure}"
            raise LoadError(message) from self.following.failure
        self.enter()
        self.leave()
        seconds = time.perf_counter() - began
        logger.info("Generation %d is served after %.1f s", self.sequence, seconds)

    @property
    def served(self) -> int:
        """The generation that forward calls are of which begin now."""
        return self._control.served if self._copy else 0

    @property
    def digest(self) -> str:
        """Of that generation, as the delta behind it names it."""
        return self._control.served_sha256

    @property
    def lag(self) -> int:
        """Generations from what is served to the newest that is published."""
        return max(self._control.published - self.served, 0)

    @property
    def gap(self) -> float:
        """Seconds since deltas wait for one that is missing; 0 where none does."""
        since = self._control.gap_since
        return max(time.time() - since / 1e6, 0.0) if since else 0.0

    @property
    def redone(self) -> int:
        """Deltas that this worker wrote again, as their writer ended half way."""
        return self._live.redone + self.following.follower.live.redone

    def as_json(self) -> dict[str, Any]:
        """The state of it, and what this worker did, as JSON holds it."""
        counts = self.counts
        return {
            "sequence": self.served,
            "age_seconds": round(self.age, 3),
            "lag_sequences": self.lag,
            "gap_seconds": round(self.gap, 3),
            "live_bytes": self.live_bytes,
            "run": self._control.run,
            "is_elected": self.following.follower.is_elected,
            "deltas": counts.deltas,
            "rows": counts.rows,
            "redone": self.redone,
            "refused": dict(counts.refused),
        }

    @property
    def counts(self) -> Counts:
        """What this worker's thread did."""
        return self.following.follower.counts

    @property
    def age(self) -> float:
        """Seconds since what is served was made; 0 of the archive itself."""
        created = self._control.served_created
        return max(time.time() - created / 1e6, 0.0) if created else 0.0

    @property
    def live_bytes(self) -> int:
        """Of the copy; 0 before there is one."""
        return self._store.buffer.numel() if self._copy else 0

    def _is_whole(self) -> bool:
        """Whether rows and model are of one generation, once they are taken from where it is."""
        control = self._control
        if control.copy != self._copy:
            self._switch()
        if not self._copy:
            if self._store.file is not None:
                self._store.file.check()
            return True
        if control.served_dense != self._dense:
            ready = self._weights.ready
            if ready.number != control.served_dense:
                return False
            self._dense, self.model = ready
        self.sequence = control.served
        return True

    def _make(self, number: int) -> None:
        """Make a model that was not ready in time."""
        try:
            self._weights.make(number)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and self._control.served_dense != number:
                return  # there are newer ones already
            message = f"its dense weights cannot be made ready ({error})"
            raise Unusable(message) from error

    def _switch(self) -> None:
        """Look rows up in the copy from now on."""
        if not self._control.copy or self._copy:
            message = f"{self._live.path}: the live copy is made again"
            raise Unusable(message)
        if self._store.buffer.numel():
            self._store.switch(self._live.path)
            threading.Thread(target=self._store.bring, daemon=True).start()
        self._live.open()
        self._copy = self._control.copy
        if self._store.file is not None:
            self._store.file.forget()


def serve_updates(
    options: Options, name: str, archive: Path, predictor: Predictor, keys: Sequence[Path]
) -> Served[Predictor] | None:
    """Follow the folder of deltas that the options name; None where they name none.

    A worker waits for what is published already, and for a live copy that is there. Where there is
    nothing yet, the archive is served while the copy is made.

    Raises:
        OptionError: the model cannot be updated, or there is no place for the copy.
        LoadError: what is published cannot be served.
    """
    updates = options.updates
    if updates.folder is None:
        return None
    index, store = _updatable(predictor)
    if not Path(updates.folder).is_dir():
        message = f"torchrec.updates.folder: received {updates.folder!r}, which is no folder"
        raise OptionError(message)
    source = Source(
        archive=archive,
        index=index,
        base=sha256(archive / INDEX),
        dense=read_dense(archive / DENSE),
        deltas=Path(updates.folder),
        keys=keys,
    )

    def build(dense: Mapping[str, torch.Tensor]) -> Predictor:
        with unchanged_process():
            return load_again(predictor, options, dense)

    samples = read_samples(archive / SAMPLES) if options.self_test and index.samples else []
    if not samples:
        return start(updates, name, source, store, Model(predictor, build))
    recorded = Recorded(
        predictor=predictor,
        options=options,
        samples=samples,
        tolerance=tolerance_of(options, predictor.dense),
    )
    model = Model(predictor, build, partial(SampleTest, recorded))
    served = start(updates, name, source, store, model)
    if served.served:
        replay_served(served, source.deltas, recorded)
    return served


def start(
    options: Updates, name: str, source: Source, store: TableStore, model: Model[T]
) -> Served[T]:
    """Follow a folder of deltas, see `serve_updates`.

    Args:
        options: say where the live copy lies.
        name: of the model.
        source: what the live copy is made of.
        store: what lookups read.
        model: what is served.
    """
    place, deltas = Path(options.place), source.deltas
    folder, held = hold_folder(place, name, source.base, deltas)
    weights = Weights(folder, source.dense, model.first, model.build)
    live, own = (Live(folder, store.entries, deltas, read_delta) for _ in range(2))
    if not live.control.copy:
        check_room(place, (source.archive / TABLES).stat().st_size - live.made_bytes())
    is_waited_for = bool(live.control.copy or list_deltas(deltas))
    test = model.test(own, weights) if model.test else None
    follower = Follower(own, source, weights, test)
    following = Following(follower, options.poll_seconds)
    served = Served(live, store, weights, held, following)
    if is_waited_for:
        served.ready()
    return served


def _updatable(predictor: Predictor) -> tuple[Index, TableStore]:
    index, store = predictor.index, predictor.tables
    if predictor.device.type != "cpu":
        why = f"a model on {predictor.device}: updates are for the CPU"
    elif predictor.leader is not None:
        why = f"tables that {predictor.leader.ranks.size} ranks hold: updates are for one process"
    elif index is None:
        why = "a plain archive, which deltas cannot name; build it with torchrec-archiver"
    elif store is None or store.file is None:
        why = "a model without tables in its archive"
    else:
        return index, store
    message = f"torchrec.updates.folder: received {why}"
    raise OptionError(message)
