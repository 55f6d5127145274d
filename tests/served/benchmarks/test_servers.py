"""`make bench` in short form: this project's server under two small loads, by wrk."""

from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.bodies import (
    COLUMNS,
    write_http,
)
from benchmarks.contenders import CONTENDERS, make_material
from benchmarks.measuring import make_workload, measure
from benchmarks.peers.stock import (
    StockModel,
)
from tests.support.answering import answering, some_inputs


@pytest.mark.wrk
def test_wrk_counts_requests_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "requests.bin"
    write_http(path, "/predict", [COLUMNS.write(some_inputs(1))])
    for status in (200, 503):
        with answering(status, b"{}") as running:
            figures = load.load(running.address, path, connections=2, seconds=1)
        assert figures.requests_per_second > 10
        assert 0 < figures.p50_ms <= figures.p99_ms <= figures.max_ms
        assert (figures.errors > 0) == (status == 503)


@pytest.mark.wrk
def test_this_project_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form: one server, checked against TorchRec's own module, under two loads."""
    monkeypatch.setattr("benchmarks.measuring.FIRST_WARM_UP_SECONDS", 1)
    material = make_material(tmp_path)
    workload = make_workload(StockModel(material.checkpoint), {1: (2,), 3: (1,)})
    for name in ("ours", "ours-int8"):
        contender = next(one for one in CONTENDERS if one.name == name)
        result = measure(contender, material, workload, 1)
        assert not result.problem
        assert [(point.format, point.rows, point.connections) for point in result.points] == [
            ("JSON columns", 1, 2),
            ("JSON columns", 3, 1),
            ("protobuf", 1, 2),
            ("protobuf", 3, 1),
        ]
        assert all(point.rows_per_second > 1 and point.p99_ms > 0 for point in result.points)
        assert (result.largest_difference < 1e-4) == (name == "ours")
        assert result.memory_mb > 100
