"""What an observer is told of the engine's work: a stage at a time, of a whole batch."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

from torchrec_handler.errors import RequestError
from torchrec_handler.histogram import Histogram

logger = logging.getLogger(__name__)

Stage = Literal["read", "check", "batch", "predict", "split", "write"]
"""Read and check are of all requests that arrived together, batch to split of a forward call, write
of all of them again."""

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
"""Bounds of a stage's histogram, from a single row's lookup to a batch that nobody waits for."""
ROWS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384)
"""Bounds of the histogram of a forward call's rows."""


class Event(NamedTuple):
    """That requests went through a stage, or ended in it."""

    stage: Stage
    seconds: float
    """That the stage took; 0 of those that ended, which are told first."""
    requests: int
    rows: int
    """Of these requests, B summed."""
    error: type[RequestError] | None = None
    """What they ended with."""


class Observer(Protocol):
    """Is told of each stage, in the thread that serves, so it had better be quick."""

    def seen(self, event: Event) -> None:
        """Take an event. What this raises is logged the first time, and never answered."""


class Stages:
    """Tells an observer of one stage after another."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._has_failed = False
        self._told: set[int] = set()
        self._since = 0.0

    def begin(self) -> None:
        """A batch has arrived."""
        self._told.clear()
        self._since = time.perf_counter()

    def done(self, stage: Stage, outcomes: Sequence[object], rows: Sequence[int]) -> None:
        """A stage has ended, and the next one begins.

        Args:
            stage: which.
            outcomes: what became of each request; an error is told at the first stage that has it.
            rows: of each request.
        """
        observer = self._observer
        if observer is None:
            return
        seconds = time.perf_counter() - self._since
        good, total = len(outcomes), sum(rows)
        # Types are few, and found faster than each outcome is looked at.
        if any(issubclass(kind, RequestError) for kind in set(map(type, outcomes))):
            ended = [each for each in zip(outcomes, rows, strict=True) if _is_error(each[0])]
            good, total = good - len(ended), total - sum([of_one for _, of_one in ended])
            self._tell_errors(observer, stage, ended)
        self._tell(observer, Event(stage=stage, seconds=seconds, requests=good, rows=total))
        self._since = time.perf_counter()

    def called(self, stage: Stage, requests: int = 0, rows: int = 0) -> None:
        """A stage of a forward call has ended well, or has ended nothing: as `done`."""
        observer = self._observer
        if observer is None:
            return
        seconds = time.perf_counter() - self._since
        self._tell(observer, Event(stage=stage, seconds=seconds, requests=requests, rows=rows))
        self._since = time.perf_counter()

    def _tell_errors(
        self, observer: Observer, stage: Stage, ended: Sequence[tuple[Any, int]]
    ) -> None:
        by_type: dict[type[RequestError], list[int]] = {}
        for error, rows in ended:
            if id(error) not in self._told:
                by_type.setdefault(type(error), []).append(rows)
        self._told.update(id(error) for error, _ in ended)
        for kind, of_kind in by_type.items():
            count, total = len(of_kind), sum(of_kind)
            event = Event(stage=stage, seconds=0.0, requests=count, rows=total, error=kind)
            self._tell(observer, event)

    def _tell(self, observer: Observer, event: Event) -> None:
        try:
            observer.seen(event)
        except Exception:
            if not self._has_failed:
                logger.exception("An observer raised, which is not logged again")
            self._has_failed = True


def _is_error(outcome: object) -> bool:
    return isinstance(outcome, RequestError)


class Totals:
    """An observer that adds up, since it was made. Another thread may read it meanwhile."""

    def __init__(self) -> None:
        self.requests = 0
        """That arrived."""
        self.rows = 0
        """That were answered."""
        self.errors: Counter[str] = Counter()
        """Requests, by the type of what they ended with."""
        self.stages = {stage: Histogram(SECONDS) for stage in get_args(Stage)}
        """Seconds: read, check and write of each batch, the others of each forward call."""
        self.batch_rows = Histogram(ROWS)
        """Rows of each forward call."""

    def seen(self, event: Event) -> None:
        """Add an event."""
        stage, seconds, requests, rows, error = event
        if stage == "read":
            self.requests += requests
        if error is not None:
            self.errors[error.__name__] += requests
            return
        self.stages[stage].add(seconds)
        if stage == "write":
            self.rows += rows
        elif stage == "predict" and requests:
            self.batch_rows.add(rows)

    def as_json(self) -> dict[str, Any]:
        """Requests that arrived, rows that were answered, errors by type, seconds by stage."""
        seconds = {stage: found.sum for stage, found in self.stages.items() if found.sum}
        return {
            "requests": self.requests,
            "rows": self.rows,
            "errors": dict(self.errors),
            "seconds": seconds,
        }
