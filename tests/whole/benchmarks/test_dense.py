"""The benchmark of the models that users wrote, in short."""

import pytest

from benchmarks.dense import Figures, measure, report
from benchmarks.models import MODELS
from benchmarks.models.contenders import STOCK
from benchmarks.turns import Timed

(DEEPFM,) = (model for model in MODELS if model.name == "DeepFM")


def test_contenders_take_turns_on_a_model() -> None:
    found = measure(DEEPFM, [STOCK, "float32", "int8"], [1, 8], turns=1, seconds=0)
    for name, figures in found.items():
        assert isinstance(figures, Figures), name
        assert list(figures.timed) == ["1", "8", "1,000 ranked"]
        assert figures.deviation > 0.05
        assert figures.difference < {STOCK: 1e-9, "float32": 1e-5, "int8": 0.1}[name]
        assert figures.megabytes > 10
    assert list(found) == [STOCK, "float32", "int8"]
    lines = list(report({"DeepFM": found}))
    assert [line.split(":")[0] for line in lines if line.startswith("#")] == [
        "### stock",
        "### float32",
        "### int8",
    ]


def figures(times_first: float) -> Figures:
    return Figures(
        timed={"16": Timed(times_first=times_first, median_us=1000.0)},
        difference=0.001,
        deviation=0.25,
        load_seconds=times_first,
        first_seconds=0.5,
        megabytes=10.0,
    )


def test_a_report_compares_with_stock_and_leaves_out_of_means_what_failed() -> None:
    found: dict[str, dict[str, Figures | str]] = {
        "one": {STOCK: figures(1.0), "float32": figures(2.0)},
        "other": {STOCK: figures(1.0), "float32": figures(8.0)},
        "third": {STOCK: figures(1.0), "float32": "RuntimeError: no"},
    }
    lines = list(report(found))
    assert lines[4] == "| one | 1,000 | 0.25 | 1.00 | 0.50 | 10.0 |"
    assert lines[8:] == [
        "### float32: times stock, and what it takes more",
        "",
        "| rows | 16 | difference | load, s | first calls, s | memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| one | 2.00 | 1.0e-03 | +1.00 | +0.00 | +0.0 |",
        "| other | 8.00 | 1.0e-03 | +7.00 | +0.00 | +0.0 |",
        "| third | RuntimeError: no |",
        "| **geometric mean** | **4.00** |  |  |  |  |",
    ]
    with pytest.raises(TypeError, match="RuntimeError: no"):
        list(report({"one": {STOCK: "RuntimeError: no"}}))
