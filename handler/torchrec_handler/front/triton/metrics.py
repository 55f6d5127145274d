"""What an instance has counted, among Triton's own metrics, some seconds' worth at a time."""

from typing import Any

import triton_python_backend_utils as backend

from torchrec_handler.front.series import MODEL, Counted, Series

DESCRIPTION = "See torchrec-serve's docs/operate.md"
"""Every instance of every model gives the same one: Triton takes them for one metric."""


class Metrics:
    """Emits how much each series has grown; instances of a model, and those before, add up."""

    def __init__(self, model: tuple[str, str], counted: Counted) -> None:
        """Declare the metrics of a model, by its name and version."""
        self._model = dict(zip(MODEL, model, strict=True))
        self._counted = counted
        family = backend.MetricFamily
        self._counters = {name: _family(name, family.COUNTER) for name in counted.counters}
        self._gauges = {name: _family(name, family.GAUGE) for name in counted.gauges}
        self._metrics: dict[Series, Any] = {}

    def emit(self) -> None:
        """Tell Triton what is new."""
        for series, growth in self._counted.grown():
            name, values = series
            if series not in self._metrics:
                _, dimensions = self._counted.counters[name]
                labels = {**self._model, **dict(zip(dimensions, values, strict=True))}
                self._metrics[series] = self._counters[name].Metric(labels=labels)
            if growth:
                self._metrics[series].increment(growth)
        for name, value in self._counted.state().items():
            if (name, ()) not in self._metrics:
                self._metrics[name, ()] = self._gauges[name].Metric(labels=self._model)
            self._metrics[name, ()].set(value)


def _family(name: str, kind: Any) -> Any:
    return backend.MetricFamily(name=name, description=DESCRIPTION, kind=kind)
