"""What a worker prints for TorchServe's frontend to add up, through TorchServe's own cache."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ts
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from tests.support.followed import Server
from tests.support.paths import ROOT
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.front.series import ERRORS, GAUGES, METRICS, UPDATES, Counted
from torchrec_handler.front.torchserve.answers import STATUSES
from torchrec_handler.front.torchserve.metrics import Metrics
from torchrec_handler.serve.observe import Event, Totals
from torchrec_handler.updates.served import Served

# TorchServe leaves it to be closed when it is read.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*metrics.yaml:ResourceWarning")

STOCK = Path(ts.__file__).parent / "configs" / "metrics.yaml"
"""What TorchServe declares where config.properties names no other."""
PARSED = re.compile(
    r"\[METRICS]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:"
    r"([^,]+),([^,]+)(,(.*))?"
)
"""Of Metric.java and WorkerLifeCycle.java."""

Series = tuple[str, str]


class Worker:
    """Counts, and tells what its frontend would have added up."""

    def __init__(
        self, caplog: pytest.LogCaptureFixture, updates: Served[Any] | None = None
    ) -> None:
        cache = MetricsCacheYamlImpl(str(STOCK))
        cache.initialize_cache()
        caplog.set_level(logging.INFO)
        self.totals = Totals()
        self.features = {"user": 0, "a,b:c|d": 0}
        model = ("shop:ranking", "1.0")
        self.metrics = Metrics(cache, model, Counted(self.totals, lambda: self.features, updates))
        self._caplog = caplog

    def emitted(self) -> dict[Series, float]:
        """The lines of one call, read as the frontend reads them."""
        self._caplog.clear()
        self.metrics.emit()
        return dict(self._read())

    def _read(self) -> Iterator[tuple[Series, float]]:
        for message in self._caplog.messages:
            found = PARSED.fullmatch(message)
            assert found, message
            name, unit, value, dimensions, kind = found.group(1, 2, 3, 4, 6)
            pairs = [pair.split(":") for pair in dimensions.split(",")]
            if name in GAUGES:
                assert (kind, unit, len(pairs)) == ("GAUGE", GAUGES[name], 2)
                yield (name, ""), float(value)
                continue
            own = {**METRICS, **UPDATES}[name][1]
            assert [pair[0] for pair in pairs] == ["ModelName", "ModelVersion", *own]
            assert [pair[1] for pair in pairs[:2]] == ["shop_ranking", "1.0"]
            assert (kind, unit) == ("COUNTER", {**METRICS, **UPDATES}[name][0])
            yield (name, ",".join(value for _, value in pairs[2:])), float(value)


@pytest.fixture
def worker(caplog: pytest.LogCaptureFixture) -> Worker:
    return Worker(caplog)


def test_every_series_begins_at_zero(worker: Worker) -> None:
    first = worker.emitted()
    assert {name for name, _ in first} == set(METRICS)
    assert set(ERRORS) == set(STATUSES)
    assert set(first.values()) == {0.0}
    assert ("torchrec_errors_total", "Overloaded") in first
    assert ("torchrec_out_of_range_ids_total", "a_b_c_d") in first
    assert ("torchrec_stage_seconds_bucket", "predict,+Inf") in first
    assert worker.emitted() == {}


def test_what_has_grown_since_is_emitted(worker: Worker) -> None:
    worker.emitted()
    worker.totals.seen(Event("read", 0.0002, requests=3, rows=3))
    worker.totals.seen(Event("read", 0.0, requests=1, rows=0, error=InvalidRequest))
    worker.totals.seen(Event("predict", 1e-5, requests=3, rows=20))
    worker.totals.seen(Event("write", 3.0, requests=3, rows=20))
    worker.features["user"] += 2
    found = worker.emitted()
    assert found["torchrec_requests_total", ""] == 4
    assert found["torchrec_rows_total", ""] == 20
    assert found["torchrec_errors_total", "InvalidRequest"] == 1
    assert found["torchrec_out_of_range_ids_total", "user"] == 2
    buckets = {key: value for (name, key), value in found.items() if name.endswith("_bucket")}
    assert ("read,0.0001" in buckets, buckets["read,0.00025"], buckets["read,+Inf"]) == (
        False,
        1,
        1,
    )
    assert buckets["predict,0.0001"] == 1
    assert ("write,2.5" in buckets, buckets["write,+Inf"]) == (False, 1)
    assert ("16" in buckets, buckets["64"], buckets["+Inf"]) == (False, 1, 1)
    assert found["torchrec_batch_rows_sum", ""] == 20
    assert found["torchrec_stage_seconds_sum", "predict"] == 1e-5
    assert worker.emitted() == {}


def test_updates_are_told_where_there_are_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path)
    server.publish()
    served = server.serve()
    worker = Worker(caplog, served)
    first = worker.emitted()
    assert {name for name, _ in first} == {*METRICS, *UPDATES, *GAUGES}
    assert first["torchrec_update_sequence", ""] == 1
    assert first["torchrec_update_deltas_total", ""] == 1
    assert first["torchrec_update_applied_rows_total", ""] == 60
    assert first["torchrec_update_pause_seconds_count", ""] == 1
    assert first["torchrec_update_refused_total", "damaged"] == 0
    assert first["torchrec_update_live_bytes", ""] == len(server.state)
    served.counts.refused["damaged"] += 1
    grown = worker.emitted()
    assert {name for name, _ in grown} == {"torchrec_update_refused_total", *GAUGES}
    assert grown["torchrec_update_refused_total", "damaged"] == 1
    served.following.stop()


def test_what_the_dashboard_and_alerts_ask_of_updates_is_told() -> None:
    monitoring = ROOT / "docs" / "monitoring"
    texts = [(monitoring / name).read_text("utf-8") for name in ("grafana.json", "alerts.yaml")]
    for text in texts:
        asked = set(re.findall(r"torchrec_update_\w+", text))
        assert asked
        assert asked <= {*UPDATES, *GAUGES}


def test_all_that_is_emitted_adds_up(worker: Worker) -> None:
    sums: defaultdict[Series, float] = defaultdict(float)
    for seconds in (0.1, 0.2, 0.7):
        worker.totals.seen(Event("check", seconds, requests=1, rows=1))
        for series, value in worker.emitted().items():
            sums[series] += value
    assert sums["torchrec_stage_seconds_sum", "check"] == pytest.approx(1.0)
    assert sums["torchrec_stage_seconds_count", "check"] == 3
    assert sums["torchrec_stage_seconds_bucket", "check,0.25"] == 2


def test_an_error_of_a_models_own_is_a_series_of_its_own(worker: Worker) -> None:
    class StaleError(InvalidRequest):
        pass

    worker.emitted()
    worker.totals.seen(Event("predict", 0.0, requests=2, rows=2, error=StaleError))
    assert worker.emitted() == {("torchrec_errors_total", "StaleError"): 2}


def test_what_metrics_config_declares_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text(
        "model_metrics:\n  counter:\n    - name: torchrec_rows_total\n      unit: lines\n"
        "      dimensions: [ModelName, ModelVersion]\n"
    )
    cache = MetricsCacheYamlImpl(str(path))
    cache.initialize_cache()
    caplog.set_level(logging.INFO)
    Metrics(cache, ("ranking", "1.0"), Counted(Totals(), dict)).emit()
    assert [
        one for one in caplog.messages if one.startswith("[METRICS]torchrec_rows_total.lines:0|")
    ]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
