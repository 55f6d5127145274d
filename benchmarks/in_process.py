"""The forward call without a server: TorchRec's stock module and the served one, stage by stage.

`python -m benchmarks.in_process` runs it. Each contender has a process of its own, as in a server,
and they take turns in bursts of calls: a ratio is the median of the ratios within the turns, so
that what the machine does beside the run falls on all alike. Figures are to be compared within one
run only.
"""

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.criteo import CriteoConfig, CriteoPredictFactory, make_weights
from benchmarks.forwards import BODIES, STOCK, Contender, Material
from torchrec_archiver import build_archive

FOLDER = ROOT / "build" / "bench"
CALLS: Mapping[int, int] = {1: 200, 16: 100, 128: 30, 1024: 6, 4096: 2}
"""Rows -> calls in one turn."""
DTYPES = ("float32", "float16", "bfloat16", "int8")
SCALE = 2.0
"""Of the tables' weights; with it the scores of random rows differ enough to be compared."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One contender's forward call."""

    threads: int
    rows: int
    contender: str
    """stock, or the `dense.dtype` of the served module."""
    times_stock: float
    median_us: float
    least_us: float
    rows_per_second: float
    """Of the median."""
    largest_difference: float
    """Of a score from stock's."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """One request's way through the served module's process, medians in microseconds."""

    threads: int
    rows: int
    body: str
    decode: float
    validate: float
    batch: float
    predict: float
    split: float
    encode: float


def compare(contenders: Sequence[Contender], threads: int, rows: int, turns: int) -> list[Forward]:
    """Let contenders, stock first, take turns."""
    scores = [torch.tensor(contender.scores(rows)) for contender in contenders]
    spent: list[list[list[float]]] = [[] for _ in contenders]
    for _ in range(turns):
        for contender, turn in zip(contenders, spent, strict=True):
            turn.append(contender.forward(rows, CALLS[rows]))
    medians = [[statistics.median(calls) for calls in turn] for turn in spent]
    return [
        Forward(
            threads=threads,
            rows=rows,
            contender=contender.name,
            times_stock=statistics.median(
                stock / own for stock, own in zip(medians[0], medians[position], strict=True)
            ),
            median_us=statistics.median(medians[position]),
            least_us=min(map(min, spent[position])),
            rows_per_second=rows / statistics.median(medians[position]) * 1e6,
            largest_difference=float((scores[position] - scores[0]).abs().max()),
        )
        for position, contender in enumerate(contenders)
    ]


def follow(contender: Contender, threads: int, rows: int, turns: int, body: str) -> Stages:
    """One contender's stages."""
    spent = contender.stages(rows, turns * CALLS[rows], body)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    return Stages(threads=threads, rows=rows, body=body, **medians)


def make_material(folder: Path, config: CriteoConfig) -> Material:
    """Write the weights and build the archive of them."""
    weights = make_weights(config)
    for name, value in weights.items():
        if "embedding_bags" in name:
            # Rows overlap in memory: each number is scaled once.
            value.as_strided((sum(value.shape) - 1,), (1,)).mul_(SCALE)
    checkpoint = folder / "in_process.pt"
    torch.save(weights, checkpoint)
    archive = build_archive(
        model_name="in_process",
        version="1.0",
        factory=CriteoPredictFactory,
        configs={"config.pkl": config},
        weights=weights,
        export_path=folder,
        archive_format="no-archive",
        force=True,
    )
    return Material(archive=archive, checkpoint=checkpoint, config=config)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_process", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for archive and figures")
    parser.add_argument("--table-rows", type=int, default=100_000, help="of each of 26 tables")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=list(CALLS), choices=list(CALLS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args(given)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    material = make_material(folder, CriteoConfig(rows=(arguments.table_rows,) * 26))
    console = Console(width=140)
    forwards: list[Forward] = []
    stages: list[Stages] = []
    for threads in arguments.threads:
        with ExitStack() as stack:
            contenders = [
                stack.enter_context(Contender(name, material, threads))
                for name in (STOCK, *arguments.dtypes)
            ]
            for rows in arguments.rows:
                forwards += compare(contenders, threads, rows, arguments.turns)
            stages += [
                follow(contenders[1], threads, rows, arguments.turns, body)
                for rows in arguments.rows
                for body in BODIES
            ]
    report("Forward calls", forwards, console)
    report(f"Stages of one request, dense.dtype {arguments.dtypes[0]}", stages, console)
    path = folder / "in_process.json"
    document = {
        "forwards": [asdict(row) for row in forwards],
        "stages": [asdict(row) for row in stages],
        "cpus": os.cpu_count(),
        "capabilities": dict(torch.cpu.get_capabilities()),
    }
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    console.print(f"Stored: {path}")


def report(title: str, rows: Sequence[Forward] | Sequence[Stages], console: Console) -> None:
    """Print figures as a table."""
    table = Table(title=title, title_justify="left")
    for name in asdict(rows[0]):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(_cell, asdict(row).values()))
    console.print(table)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.01 or not value else f"{value:.1e}"


if __name__ == "__main__":
    main()
