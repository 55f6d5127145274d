"""`python -m benchmarks.growth` in short form: small tables."""

import json
from pathlib import Path

from benchmarks import growth


def test_both_sizes_are_measured(tmp_path: Path) -> None:
    growth.main(["--folder", str(tmp_path), "--table-rows", "100", "1000"])
    figures = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert [cost["table_rows"] for cost in figures] == [100, 1000]
    assert all(cost["lookup_us"] > 0 and cost["copy_us"] > 0 for cost in figures)
