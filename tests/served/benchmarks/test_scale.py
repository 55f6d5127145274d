"""`make bench-scale` in short form: a thousandth of the model, one worker."""

import json
from pathlib import Path

from benchmarks import scale


def test_all_ways_are_served_and_measured(tmp_path: Path) -> None:
    scale.main(
        ["--shrink", "1000", "--seconds", "0.5", "--workers", "1", "--folder", str(tmp_path)]
    )
    figures = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))
    assert [(row["way"], row["cache"]) for row in figures["started"]] == [
        (way, cache)
        for way in ("mapped", "converted", "read", "mapped")
        for cache in ("cold", "warm")
    ]
    assert [row["way"] for row in figures["served"]] == ["mapped", "read", "mapped"]
    for row in figures["served"]:
        assert row["workers"] == 1
        assert row["rows_per_second"] > 0
        assert 0 < row["workers_gb"] < row["server_gb"]
    for row in figures["started"]:
        assert row["seconds_after_torch"] > 0
        assert row["lookup_us"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["server"]
