"""The time series of a model, by the names that every server's metrics have them under.

A histogram is what Prometheus reads of one: counters `_bucket` (by `le`), `_sum` and `_count`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torchrec_handler.errors import (
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    PredictError,
    RequestTooLarge,
    UnknownQualname,
    UnsupportedMediaType,
)
from torchrec_handler.histogram import Histogram
from torchrec_handler.serve.observe import Totals
from torchrec_handler.updates.follow import REASONS
from torchrec_handler.updates.served import Served

COUNT, SECONDS = "Count", "Seconds"
MODEL = ("ModelName", "ModelVersion")
"""What all series are of."""
METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "torchrec_requests_total": (COUNT, ()),
    "torchrec_rows_total": (COUNT, ()),
    "torchrec_errors_total": (COUNT, ("Type",)),
    "torchrec_out_of_range_ids_total": (COUNT, ("Feature",)),
    "torchrec_stage_seconds_bucket": (COUNT, ("Stage", "le")),
    "torchrec_stage_seconds_sum": (SECONDS, ("Stage",)),
    "torchrec_stage_seconds_count": (COUNT, ("Stage",)),
    "torchrec_batch_rows_bucket": (COUNT, ("le",)),
    "torchrec_batch_rows_sum": (COUNT, ()),
    "torchrec_batch_rows_count": (COUNT, ()),
}
"""Name -> unit, and dimensions beside `MODEL`; all are counters."""
UPDATES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "torchrec_update_deltas_total": (COUNT, ()),
    "torchrec_update_applied_rows_total": (COUNT, ()),
    "torchrec_update_refused_total": (COUNT, ("Reason",)),
    "torchrec_update_redo_total": (COUNT, ()),
    "torchrec_update_pause_seconds_bucket": (COUNT, ("le",)),
    "torchrec_update_pause_seconds_sum": (SECONDS, ()),
    "torchrec_update_pause_seconds_count": (COUNT, ()),
    "torchrec_update_wait_seconds_total": (SECONDS, ()),
}
"""The same where rows change while they are served."""
GAUGES: Mapping[str, str] = {
    "torchrec_update_sequence": COUNT,
    "torchrec_update_age_seconds": SECONDS,
    "torchrec_update_lag_sequences": COUNT,
    "torchrec_update_gap_seconds": SECONDS,
    "torchrec_update_live_bytes": "Bytes",
}
"""Name -> unit of what is told anew each time, there; all workers of a machine tell the same."""
ERRORS = (
    InvalidRequest,
    UnknownQualname,
    RequestTooLarge,
    UnsupportedMediaType,
    PredictError,
    Overloaded,
    OutOfMemory,
)
"""Those that are counted from the start."""
DECIMALS = 6
"""Of seconds."""

Series = tuple[str, tuple[str, ...]]
"""A metric's name, and its dimensions' values beside those of `MODEL`."""


class Counted:
    """Tells how much each series has grown; at first all of them, so that each is seen as zero."""

    def __init__(
        self,
        totals: Totals,
        out_of_range: Callable[[], Mapping[str, int]],
        updates: Served[Any] | None = None,
    ) -> None:
        """Take what counts.

        Args:
            totals: what is counted meanwhile.
            out_of_range: gives the ids outside of their tables by feature.
            updates: what changes while it is served, if anything does.
        """
        self._totals = totals
        self._out_of_range = out_of_range
        self._updates = updates
        self._told: dict[Series, float] = {}

    @property
    def counters(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """Of `METRICS` and `UPDATES`, those that there are."""
        return METRICS if self._updates is None else {**METRICS, **UPDATES}

    @property
    def gauges(self) -> Mapping[str, str]:
        """Of `GAUGES`, those that there are."""
        return {} if self._updates is None else GAUGES

    def grown(self) -> Iterator[tuple[Series, float]]:
        """What each counter has grown by since it was asked last, where it has."""
        for series, value in self._now():
            before = self._told.get(series)
            if before is None or value > before:
                self._told[series] = value
                yield series, round(value - (before or 0), DECIMALS)

    def state(self) -> dict[str, float]:
        """What the gauges say."""
        updates = self._updates
        if updates is None:
            return {}
        found = {
            "torchrec_update_sequence": updates.served,
            "torchrec_update_age_seconds": updates.age,
            "torchrec_update_lag_sequences": updates.lag,
            "torchrec_update_gap_seconds": updates.gap,
            "torchrec_update_live_bytes": updates.live_bytes,
        }
        return {name: round(value, DECIMALS) for name, value in found.items()}

    def _now(self) -> Iterator[tuple[Series, float]]:
        totals = self._totals
        yield ("torchrec_requests_total", ()), totals.requests
        yield ("torchrec_rows_total", ()), totals.rows
        errors = dict.fromkeys((kind.__name__ for kind in ERRORS), 0) | dict(totals.errors)
        for kind, count in errors.items():
            yield ("torchrec_errors_total", (kind,)), count
        for feature, count in self._out_of_range().items():
            yield ("torchrec_out_of_range_ids_total", (feature,)), count
        for stage, seconds in totals.stages.items():
            yield from _histogram("torchrec_stage_seconds", (stage,), seconds)
        yield from _histogram("torchrec_batch_rows", (), totals.batch_rows)
        if self._updates is not None:
            yield from _updated(self._updates)


def _updated(updates: Served[Any]) -> Iterator[tuple[Series, float]]:
    counts = updates.counts
    yield ("torchrec_update_deltas_total", ()), counts.deltas
    yield ("torchrec_update_applied_rows_total", ()), counts.rows
    yield ("torchrec_update_redo_total", ()), updates.redone
    for reason, count in (dict.fromkeys(REASONS, 0) | counts.refused).items():
        yield ("torchrec_update_refused_total", (reason,)), count
    yield from _histogram("torchrec_update_pause_seconds", (), counts.pause)
    yield ("torchrec_update_wait_seconds_total", ()), counts.waited


def _histogram(
    name: str, dimensions: tuple[str, ...], histogram: Histogram
) -> Iterator[tuple[Series, float]]:
    counts = histogram.counts()
    for bound, count in zip(histogram.bounds, counts, strict=True):
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        yield (f"{name}_bucket", (*dimensions, le)), count
    yield (f"{name}_sum", dimensions), histogram.sum
    yield (f"{name}_count", dimensions), counts[-1]
