"""`python -m benchmarks.exchange` in short form: a small table, two processes."""

import json
from pathlib import Path

import pytest

from benchmarks import exchange


def test_lookups_are_fitted_and_exchanges_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "TIMES", 2)
    given = ("--table-bytes", "1000000", "--processes", "2")
    exchange.main(["--folder", str(tmp_path), *given])
    figures = json.loads((tmp_path / "exchange.json").read_text(encoding="utf-8"))
    assert len(figures["lookups"]) == 5 * len(exchange.WIDTHS) * 2
    assert list(figures["fitted_ns"]) == [
        *("list", "pooled", "id", "float32", "float16", "int8", "int4", "int2")
    ]
    assert [one["nbytes"] for one in figures["exchanges"]] == list(exchange.SIZES)
    assert all(one["all_to_all_us"] > 0 < one["asked_us"] for one in figures["exchanges"])


def test_a_fit_gives_back_what_figures_were_made_of() -> None:
    values = {"float32": 0.5, "float16": 0.3, "int8": 0.25, "int4": 0.4, "int2": 0.6}
    made = [
        exchange.Lookup(
            dtype=dtype,
            width=width,
            ids=ids,
            ns_per_id=(60 + 0.5 * width) / ids + 30 + width * value,
        )
        for dtype, value in values.items()
        for width in exchange.WIDTHS
        for ids in (1, exchange.LONG)
    ]
    expected = {"list": 60, "pooled": 0.5, "id": 30, **values}
    assert exchange.fit(made) == pytest.approx(expected)
