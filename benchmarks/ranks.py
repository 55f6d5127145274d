"""Tables spread over ranks: a batch's time by part and each rank's memory, by ranks.

`python -m benchmarks.ranks` builds the Criteo DLRM at a tenth of its rows, if it is not there, and
runs it on 1, 2 and 4 ranks that torchrun starts on this machine. The parts are the leader's: its
own lookups, what it then waits for the others and their rows, putting all rows together, and the
dense part. Memory is looked at once every page of the tables was looked up in, while all ranks are
there: PSS, in which a page that several processes share counts once. MB are those that travel.
Beside that a batch of four forward calls is answered by turns with the lookups of the next one
asked for during the one before, and not.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.criteo import CRITEO_ROWS
from benchmarks.scale import build
from torchrec_archiver.planning import Layout, Request, by_rank, lay_out
from torchrec_archiver.sizes import of_index
from torchrec_handler.archive.read import read_index

STORED = ROOT / "build" / "ranks.json"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="of the full tables' rows")
    parser.add_argument("--archive", type=Path, help="one of this model that is there, a folder")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000])
    options = parser.parse_args()
    folder = ROOT / "build" / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"criteo-{options.share:g}"
    archive = options.archive or folder / name
    if not archive.exists():
        sizes = [max(1, int(rows * options.share)) for rows in CRITEO_ROWS]
        # What maps the tables beside the ranks would have its share of the pages.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(build, folder, name, sizes).result()
    batches: list[Mapping[str, Any]] = []
    calls: list[Mapping[str, Any]] = []
    for ranks in options.ranks:
        for dtype in ("float32",) if ranks == 1 else ("float32", "float16"):
            said = _run(archive, ranks, dtype, options.rows)
            head = {"ranks": ranks, "travels": dtype}
            batches += [{**head, **each} for each in said if "rows" in each]
            calls += [{**head, **each} for each in said if "times as fast" in each]
    found = {"batches": batches, "several forward calls": calls}
    STORED.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for title, rows in found.items():
        if rows:
            Console(width=180).print(_table(title, rows))


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*map(str, rows[0]), title=title, title_justify="left")
    for row in rows:
        table.add_row(
            *(f"{one:.2f}" if isinstance(one, float) else str(one) for one in row.values())
        )
    return table


def _run(archive: Path, ranks: int, dtype: str, rows: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    done = subprocess.run(  # noqa: S603  our own command
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={ranks}", "-m", "benchmarks.ranks_worker"),
            *(str(archive), dtype, *map(str, rows)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    said = [json.loads(line) for line in lines]
    memory = [each for each in said if "tables" in each]
    if len(memory) != ranks:
        raise RuntimeError(done.stderr[-4000:])
    shown = {
        f"{what}, GB of each rank": " ".join(f"{each[what]:.2f}" for each in memory)
        for what in ("tables", "process")
    }
    return [
        {**each, "MB planned": _planned_mb(archive, ranks, dtype, each["rows"]), **shown}
        if "rows" in each
        else each
        for each in said
    ]


def _planned_mb(archive: Path, ranks: int, dtype: str, rows: int) -> float:
    """What `torchrec-archiver plan` says of the network."""
    layout = Layout(nodes=ranks, ranks_per_node=1, type="table_wise", per_table={})
    parts = lay_out(of_index(read_index(archive).tables, 1), layout)
    found = by_rank(parts, layout, Request(rows=rows, exchange_dtype=dtype), None)
    return sum(rank.received + rank.answered for rank in found) / 1e6


if __name__ == "__main__":
    main()
