"""What a worker has counted, handed to TorchServe's metrics some seconds' worth at a time.

TorchServe's frontend adds up what all workers print, a line a value, so nothing is printed for each
request. Of histograms it takes one observed value a line and knows no bounds but 0.005 to 10; so a
histogram here is what Prometheus reads of one: counters `_bucket` (by `le`), `_sum` and `_count`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from torchrec_handler.front.torchserve.answers import STATUSES
from torchrec_handler.histogram import Histogram
from torchrec_handler.serve.observe import Totals
from torchrec_handler.updates.follow import REASONS
from torchrec_handler.updates.served import Served

COUNT, SECONDS = "Count", "Seconds"
MODEL = ("ModelName", "ModelVersion")
"""TorchServe's names of dimensions; its frontend adds Hostname."""
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
DECIMALS = 6
"""Of seconds."""
PARTED = re.compile(r"[^\w .+/-]")
"""What a dimension's value may not hold: `,`, `:` and `|` part a line of metrics."""

Series = tuple[str, tuple[str, ...]]
"""A metric's name, and its dimensions' values beside those of `MODEL`."""


class Metrics:
    """Emits how much each series has grown; at first all of them, so that each is seen as zero."""

    def __init__(
        self,
        cache: Any,
        model: tuple[str, str],
        totals: Totals,
        out_of_range: Callable[[], Mapping[str, int]],
        updates: Served[Any] | None = None,
    ) -> None:
        """Declare the metrics, unless `metrics_config` does.

        Args:
            cache: TorchServe's, `context.metrics`.
            model: name and version.
            totals: what is counted meanwhile.
            out_of_range: gives the ids outside of their tables by feature.
            updates: what changes while it is served, if anything does.
        """
        self._model = list(map(_value, model))
        self._totals = totals
        self._out_of_range = out_of_range
        self._updates = updates
        counters = {**METRICS, **(UPDATES if updates else {})}
        self._metrics = {name: _counter(cache, name, *told) for name, told in counters.items()}
        self._gauges = {name: _gauge(cache, name, GAUGES[name]) for name in GAUGES if updates}
        self._emitted: dict[Series, float] = {}

    def emit(self) -> None:
        """Print what is new."""
        for series, value in self._now():
            before = self._emitted.get(series)
            if before is None or value > before:
                metric, dimensions = series
                grown = round(value - (before or 0), DECIMALS)
                self._metrics[metric].add_or_update(grown, [*self._model, *map(_value, dimensions)])
                self._emitted[series] = value
        for name, value in self._state().items():
            self._gauges[name].add_or_update(round(value, DECIMALS), self._model)

    def _state(self) -> dict[str, float]:
        updates = self._updates
        if updates is None:
            return {}
        return {
            "torchrec_update_sequence": updates.served,
            "torchrec_update_age_seconds": updates.age,
            "torchrec_update_lag_sequences": updates.lag,
            "torchrec_update_gap_seconds": updates.gap,
            "torchrec_update_live_bytes": updates.live_bytes,
        }

    def _now(self) -> Iterator[tuple[Series, float]]:
        totals = self._totals
        yield ("torchrec_requests_total", ()), totals.requests
        yield ("torchrec_rows_total", ()), totals.rows
        errors = dict.fromkeys((kind.__name__ for kind in STATUSES), 0) | dict(totals.errors)
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


def _counter(cache: Any, metric: str, unit: str, dimensions: tuple[str, ...]) -> Any:
    try:
        return cache.get_metric(metric, MetricTypes.COUNTER)
    except MetricsCacheKeyError:
        return cache.add_metric_to_cache(metric, unit, [*MODEL, *dimensions], MetricTypes.COUNTER)


def _gauge(cache: Any, metric: str, unit: str) -> Any:
    try:
        return cache.get_metric(metric, MetricTypes.GAUGE)
    except MetricsCacheKeyError:
        return cache.add_metric_to_cache(metric, unit, [*MODEL], MetricTypes.GAUGE)


def _value(text: str) -> str:
    return PARTED.sub("_", text) or "_"
