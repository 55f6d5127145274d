"""Tables 100 times larger: what their lookups cost more, beside what their cache misses cost.

`python -m benchmarks.growth` runs it. The same random rows are looked up by the served module and
copied, bytes only, by `torch.index_select`; what copying costs more in the larger tables is what
the processor waits for memory. Shapes: B rows, F features, N ids.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.criteo import kjt
from benchmarks.scale import build
from torchrec_handler.archive.format import TABLES as MAPPED
from torchrec_handler.archive.read import read_index
from torchrec_handler.load.loader import load
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
from torchrec_handler.tables.store import TableStore

FEATURES = 26
ROWS = 1000
BATCHES = 200


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians in microseconds of 1,000 rows, one id a feature."""

    table_rows: int
    """Of each of 26 tables."""
    tables_gb: float
    lookup_us: float
    """The served module's lookups, pooled and joined."""
    copy_us: float
    """Copying the same rows' bytes."""


def copy(blocks: Sequence[torch.Tensor], ids: torch.Tensor) -> None:
    """Copy rows of each table; ids [F, B]."""
    for block, own in zip(blocks, ids, strict=True):
        torch.index_select(block, 0, own)


def measure(archives: Mapping[int, Path]) -> list[Cost]:
    """Time all sizes and both ways by turns, each call with rows of its own."""
    generator = torch.Generator().manual_seed(0)
    ways: list[tuple[int, str, list[Callable[[], Any]]]] = []
    stores = {
        table_rows: TableStore.map(archive / MAPPED, read_index(archive).tables)
        for table_rows, archive in archives.items()
    }
    become_worker(Options(), torch.device("cpu"))
    for table_rows, store in stores.items():
        predictor = load(archives[table_rows], Options(), torch.device("cpu"))
        blocks = [store.rows(entry) for entry in store.entries.values()]
        look_up: Any = predictor.module.get_submodule("_module.sparse_arch")
        drawn = [
            torch.randint(0, table_rows, (2, FEATURES, ROWS), generator=generator)
            for _ in range(BATCHES)
        ]
        inputs = [kjt(FEATURES, ids[0].reshape(-1).int()) for ids in drawn]
        ways.append((table_rows, "lookup", [partial(look_up, one) for one in inputs]))
        ways.append((table_rows, "copy", [partial(copy, blocks, ids[1]) for ids in drawn]))
        torch.sum(store.buffer)  # From now on no page is touched for the first time.
    spent: dict[tuple[int, str], list[float]] = {}
    with torch.inference_mode():
        for number in range(BATCHES):
            for table_rows, way, calls in ways:
                began = time.perf_counter()
                calls[number]()
                took = (time.perf_counter() - began) * 1e6
                spent.setdefault((table_rows, way), []).append(took)
    return [
        Cost(
            table_rows=table_rows,
            tables_gb=store.buffer.nbytes / 1e9,
            lookup_us=statistics.median(spent[table_rows, "lookup"]),
            copy_us=statistics.median(spent[table_rows, "copy"]),
        )
        for table_rows, store in stores.items()
    ]


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "growth")
    parser.add_argument("--table-rows", type=int, nargs="+", default=[10_000, 1_000_000])
    arguments = parser.parse_args(given)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    costs = measure(
        {rows: build(folder, f"rows-{rows}", (rows,) * FEATURES) for rows in arguments.table_rows}
    )
    table = Table(title="Lookups of 1,000 rows", title_justify="left")
    for name in asdict(costs[0]):
        table.add_column(name.replace("_", " "), justify="right")
    for cost in costs:
        table.add_row(
            *(
                f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
                for value in asdict(cost).values()
            )
        )
    Console(width=100).print(table)
    document = [asdict(cost) for cost in costs]
    (folder / "growth.json").write_text(json.dumps(document, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
