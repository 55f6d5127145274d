"""`python -m benchmarks.in_process` in short form: small tables, three contenders, two turns."""

import json
from pathlib import Path

import pytest

from benchmarks import in_process
from benchmarks.in_process import Forward, Stages

DIFFERENCES = {"stock": 0, "float32": 1e-5, "bfloat16": 2e-2}
"""Of scores, at most."""


def test_forward_calls_and_stages_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--table-rows", "100", "--threads", "1", "--rows", "1", "16"]
    options += ["--dtypes", "float32", "bfloat16", "--turns", "2", "--folder", str(tmp_path)]
    in_process.main(options)
    figures = json.loads((tmp_path / "in_process.json").read_text(encoding="utf-8"))
    forwards = [Forward(**row) for row in figures["forwards"]]
    assert [(row.rows, row.contender) for row in forwards] == [
        (rows, name) for rows in (1, 16) for name in DIFFERENCES
    ]
    for row in forwards:
        assert row.threads == 1
        assert 0 < row.least_us <= row.median_us
        assert row.rows_per_second == pytest.approx(row.rows / row.median_us * 1e6)
        assert row.largest_difference <= DIFFERENCES[row.contender]
    assert [row.times_stock for row in forwards if row.contender == "stock"] == [1, 1]
    stages = [Stages(**row) for row in figures["stages"]]
    assert [(row.rows, row.body) for row in stages] == [
        (rows, body) for rows in (1, 16) for body in ("json columns", "protobuf")
    ]
    for one in stages:
        times = (one.decode, one.validate, one.batch, one.predict, one.split, one.encode)
        assert all(time > 0 for time in times)
    printed = capsys.readouterr().out
    assert "Forward calls" in printed
    assert "Stages of one request, dense.dtype float32" in printed
