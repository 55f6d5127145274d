"""What a worker has counted, handed to TorchServe's metrics some seconds' worth at a time.

TorchServe's frontend adds up what all workers print, a line a value, so nothing is printed for each
request. Of histograms it takes one observed value a line and knows no bounds but 0.005 to 10, so
they are counters here, see `front.series`.
"""

import re
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from torchrec_handler.front.series import MODEL, Counted

PARTED = re.compile(r"[^\w .+/-]")
"""What a dimension's value may not hold: `,`, `:` and `|` part a line of metrics."""


class Metrics:
    """Emits how much each series has grown. TorchServe's frontend adds Hostname to `MODEL`."""

    def __init__(self, cache: Any, model: tuple[str, str], counted: Counted) -> None:
        """Declare the metrics, unless `metrics_config` does.

        Args:
            cache: TorchServe's, `context.metrics`.
            model: name and version.
            counted: what is counted meanwhile.
        """
        self._model = list(map(_value, model))
        self._counted = counted
        self._counters = {
            name: _declared(cache, MetricTypes.COUNTER, name, unit, dimensions)
            for name, (unit, dimensions) in counted.counters.items()
        }
        self._gauges = {
            name: _declared(cache, MetricTypes.GAUGE, name, unit)
            for name, unit in counted.gauges.items()
        }

    def emit(self) -> None:
        """Print what is new."""
        for (name, dimensions), growth in self._counted.grown():
            self._counters[name].add_or_update(growth, [*self._model, *map(_value, dimensions)])
        for name, value in self._counted.state().items():
            self._gauges[name].add_or_update(value, self._model)


def _declared(
    cache: Any, kind: MetricTypes, metric: str, unit: str, dimensions: tuple[str, ...] = ()
) -> Any:
    try:
        return cache.get_metric(metric, kind)
    except MetricsCacheKeyError:
        return cache.add_metric_to_cache(metric, unit, [*MODEL, *dimensions], kind)


def _value(text: str) -> str:
    return PARTED.sub("_", text) or "_"
