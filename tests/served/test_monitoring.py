"""docs/monitoring: a real Prometheus scrapes a real server; every query has an answer."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="prometheus, a Debian package, is not installed"
)

MONITORING = ROOT / "docs" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
START_SECONDS = 30
LOAD_SECONDS = 4.0
NAME = "monitored"
VARIABLES = {"$__rate_interval": "20s", "$model": NAME, "$version": ".*"}

GOOD = {
    "float_features": [[0.1, 0.9, 0.2, 0.7, 0.5, -0.2]],
    "id_list_features.lengths": [1, 1, 1, 1, 1, 2, 1],
    "id_list_features.values": [42, 30, 1, 7, 50, 3, 5, 20],
}
OUT_OF_RANGE = {**GOOD, "id_list_features.values": [42_000_000, 30, 1, 7, 50, 3, 5, 20]}


class Prometheus:
    """Answers queries about what it scraped."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10)

    def close(self) -> None:
        """Ask no more."""
        self._http.close()

    def ask(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and value of each series, now."""
        answer = self._http.get("/query", params={"query": query})
        assert answer.is_success, answer.text
        result = answer.json()["data"]["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def soon(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """As `ask`, once there is something."""
        end = time.monotonic() + START_SECONDS
        found: list[tuple[Mapping[str, str], float]] = []
        while not found and time.monotonic() < end:
            with suppress(httpx.TransportError, AssertionError):
                found = self.ask(query)
            time.sleep(0.1)
        return found

    def alerts(self) -> set[str]:
        """Names of all rules that it has loaded."""
        groups = self._http.get("/rules").json()["data"]["groups"]
        return {rule["name"] for group in groups for rule in group["rules"]}


@pytest.fixture(scope="module")
def monitored(server: TorchServe, movielens_archive: Path) -> Iterator[TorchServe]:
    """The trained model under a name that nobody else asks."""
    answer = server.register(movielens_archive, model_name=NAME)
    assert answer.is_success, answer.text
    yield server
    server.unregister(NAME)


@pytest.fixture(scope="module")
def prometheus(
    monitored: TorchServe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """One that has seen some load, with the shipped configuration; it only scrapes more often."""
    folder = tmp_path_factory.mktemp("prometheus")
    shipped = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    shipped["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    shipped["rule_files"] = [str(MONITORING / name) for name in shipped["rule_files"]]
    target = str(monitored.metrics.base_url.netloc.decode())
    shipped["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(shipped))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["prometheus", "--config.file", str(folder / "prometheus.yml")]
    command += ["--storage.tsdb.path", str(folder / "data")]
    command += ["--web.listen-address", f"127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        running = Prometheus(port)
        try:
            assert running.soon("up == 1"), (folder / "log").read_text()
            count = load(monitored)
            assert running.soon(f'torchrec_requests_total{{ModelName="{NAME}"}} == {count}')
            yield running
        finally:
            process.terminate()
            running.close()


def load(server: TorchServe) -> int:
    """Ask for single rows, some of which are refused; tells how many."""
    end = time.monotonic() + LOAD_SECONDS
    count = 0
    while time.monotonic() < end:
        assert server.predict(NAME, GOOD).status_code == 200
        assert server.predict(NAME, OUT_OF_RANGE).status_code == 400
        assert server.predict(NAME, b"{").status_code == 400
        count += 3
        time.sleep(0.02)
    return count


def filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


QUERIES = {
    f"{panel['title']} {target['refId']}": filled(target["expr"])
    for panel in PANELS
    for target in panel["targets"]
    if "torchrec_update_" not in target["expr"]
}
"""But for what is there only where rows change while they are served."""


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_each_query_of_the_dashboard_has_an_answer(prometheus: Prometheus, query: str) -> None:
    found = prometheus.soon(query)
    assert found
    assert all(value == value for _, value in found), found  # noqa: PLR0124  not a number


def test_numbers_are_those_of_the_load(prometheus: Prometheus, monitored: TorchServe) -> None:
    """Each request has one row, two of three are refused, one for an id of `user_id`."""
    described = monitored.management.get(f"/models/{NAME}?customized=true").json()
    requests = described[0]["customizedMetadata"]["served"]["requests"]
    model = f'{{ModelName="{NAME}"}}'
    ((labels, value),) = prometheus.ask(f"torchrec_requests_total{model}")
    assert (labels["ModelVersion"], value) == ("1.0", requests)
    rows = requests / 3
    assert [value for _, value in prometheus.ask(f"torchrec_rows_total{model}")] == [rows]
    errors = prometheus.ask(f"torchrec_errors_total{model} > 0")
    assert [(labels["Type"], count) for labels, count in errors] == [("InvalidRequest", 2 * rows)]
    features = prometheus.ask(f"torchrec_out_of_range_ids_total{model} > 0")
    assert [(labels["Feature"], count) for labels, count in features] == [("user_id", rows)]
    assert [value for _, value in prometheus.ask(f"torchrec_batch_rows_count{model}")] == [rows]


def test_quantiles_of_our_buckets_lie_between_their_bounds(prometheus: Prometheus) -> None:
    model = f'ModelName="{NAME}"'
    rate = f"rate(torchrec_batch_rows_bucket{{{model}}}[30s])"
    ((_, rows),) = prometheus.ask(f"histogram_quantile(0.99, sum by (le) ({rate}))")
    assert 0 < rows <= 1
    rate = f"rate(torchrec_stage_seconds_bucket{{{model}}}[30s])"
    found = prometheus.ask(f"histogram_quantile(0.5, sum by (Stage, le) ({rate}))")
    stages = {labels["Stage"]: seconds for labels, seconds in found}
    assert set(stages) == {"read", "check", "batch", "predict", "split", "write"}
    assert all(0 < seconds < 0.1 for seconds in stages.values()), stages


def test_it_has_loaded_every_alert(prometheus: Prometheus) -> None:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    assert prometheus.alerts() == {rule["alert"] for group in groups for rule in group["rules"]}


def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(MONITORING / "prometheus.yml"))


Series = Mapping[str, str]


def series(name: str, per_minute: float, **labels: str) -> Series:
    """As promtool takes them, for half an hour."""
    text = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{text}}}", "values": f"0+{per_minute:.0f}x30"}


def up(value: int) -> Series:
    return {"series": 'up{job="torchserve"}', "values": f"{value}x30"}


def server_errors(per_minute: float) -> Series:
    return series("Requests5XX", per_minute, **HOST)


def queueing(per_minute: float) -> Series:
    """Microseconds that requests waited."""
    return series("ts_queue_latency_microseconds", per_minute, **TORCHSERVE, **HOST)


def failing(kind: str, per_minute: float) -> Series:
    return series("torchrec_errors_total", per_minute, Type=kind, **MODEL)


def out_of_range(per_minute: float) -> Series:
    return series("torchrec_out_of_range_ids_total", per_minute, Feature="user_id", **MODEL)


def refused(per_minute: float) -> Series:
    return series("torchrec_update_refused_total", per_minute, Reason="damaged", **MODEL)


MODEL = {"ModelName": "movielens", "ModelVersion": "1.0", "Hostname": "vm"}
TORCHSERVE = {"model_name": "movielens", "model_version": "default", "hostname": "vm"}
HOST = {"instance": "127.0.0.1:8082", "job": "torchserve"}
HEALTHY = [
    series("torchrec_requests_total", 1000, **MODEL),
    series("torchrec_rows_total", 1000, **MODEL),
    series("ts_inference_requests_total", 1000, **TORCHSERVE, **HOST),
]


@pytest.mark.parametrize(
    ("alert", "sick", "well"),
    [
        ("TorchServeDown", up(0), up(1)),
        ("TorchServeUnavailable", server_errors(20), server_errors(5)),
        ("TorchServeQueueing", queueing(2e8), queueing(2e7)),
        ("TorchRecModelFails", failing("PredictError", 20), failing("InvalidRequest", 20)),
        ("TorchRecOverloaded", failing("Overloaded", 20), failing("Overloaded", 5)),
        ("TorchRecRefusesRequests", failing("UnknownQualname", 60), failing("PredictError", 60)),
        ("TorchRecIdsOutOfRange", out_of_range(20), out_of_range(5)),
        ("TorchRecDeltaRefused", refused(1), refused(0)),
    ],
)
def test_alerts_fire_when_they_should_alone(
    tmp_path: Path, alert: str, sick: Series, well: Series
) -> None:
    """promtool's own test of rules, which names the alerts that fire and those that do not."""
    assert fires(tmp_path, alert, [*HEALTHY, sick])
    assert not fires(tmp_path, alert, [*HEALTHY, well])


def fires(folder: Path, alert: str, input_series: Sequence[Series]) -> bool:
    """Whether an alert fires after 20 minutes. Its labels are not told, so a failed test tells."""
    case = {"eval_time": "20m", "alertname": alert, "exp_alerts": []}
    test = {"interval": "1m", "input_series": list(input_series), "alert_rule_test": [case]}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
    command = ["promtool", "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    is_firing = f'alertname="{alert}"' in said
    assert is_firing or done.returncode == 0, said
    return is_firing


def promtool(*arguments: str) -> None:
    command = ["promtool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
