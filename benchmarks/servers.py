"""All servers on one model, one after the other: rows a second, latency, memory, start.

`make bench` runs it: rounds over all servers, of which each load's best counts, since what else a
shared machine does only takes away. A run with `--only` replaces the figures of the servers that it
names and keeps the others'; figures are to be compared within one run only.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.contenders import CONTENDERS, make_material
from benchmarks.environments import environment
from benchmarks.load import wrk
from benchmarks.measuring import LOADS, Point, Result, better, make_workload, measure
from benchmarks.peers.stock import StockModel

FOLDER = ROOT / "build" / "bench"

RESULTS = FOLDER / "servers.json"

PLOT = ROOT / "docs" / "servers.svg"


def merge(old: Sequence[Mapping[str, object]], new: Sequence[Result]) -> list[dict[str, object]]:
    """Put new results in the place of old ones, in the order of `CONTENDERS`."""
    known = {str(entry["name"]): dict(entry) for entry in old}
    known |= {result.name: asdict(result) for result in new}
    return [known[one.name] for one in CONTENDERS if one.name in known]


def report(results: Sequence[Mapping[str, object]], console: Console) -> None:
    """Print a line a server and format."""
    table = Table(title="One model, all servers", title_justify="left")
    for heading in HEADINGS:
        first = heading == HEADINGS[0]
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for entry in results:
        for line in lines(entry):
            table.add_row(*line)
    console.print(table)
    for entry in results:
        if entry["problem"]:
            console.print(f"{entry['title']}: {entry['problem']}", markup=False)


HEADINGS = (
    "server",
    "1 row, 1 conn. p50 ms",
    "1 row, 64 conn. rows/s",
    "p50 ms",
    "p99 ms",
    "100 rows rows/s",
    "1,000 rows rows/s",
    "memory MB",
    "start s",
)


def lines(entry: Mapping[str, object]) -> Iterator[list[str]]:
    """One server's lines of the table: best of all connections for 100 and 1,000 rows."""
    points = [Point(**point) for point in entry["points"]]  # type: ignore[attr-defined]
    if not points:
        yield [str(entry["title"]), *["-"] * (len(HEADINGS) - 1)]
    for name in dict.fromkeys(point.format for point in points):
        found = {(point.rows, point.connections): point for point in points if point.format == name}
        yield [
            f"{entry['title']}, {name}",
            f"{found[1, 1].p50_ms:,.2f}",
            f"{found[1, 64].rows_per_second:,.0f}",
            f"{found[1, 64].p50_ms:,.1f}",
            f"{found[1, 64].p99_ms:,.1f}",
            *(
                f"{max(found[rows, some].rows_per_second for some in LOADS[rows]):,.0f}"
                for rows in (100, 1000)
            ),
            f"{entry['memory_mb']:,.0f}",
            f"{entry['first_answer_seconds']:,.1f}",
        ]


def plot(results: Path, target: Path) -> None:
    """Draw rows a second against p99, in the plot's own environment."""
    python = environment("plot") / "bin" / "python"
    command = [str(python), str(Path(__file__).with_name("plot.py")), str(results), str(target)]
    subprocess.run(command, check=True)  # noqa: S603  our own command


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    names = [one.name for one in CONTENDERS]
    parser.add_argument("--only", help=f"some of {','.join(names)}")
    parser.add_argument("--seconds", type=float, default=2, help="of load for each figure")
    parser.add_argument("--rounds", type=int, default=2, help="over all servers")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"--only: received {', '.join(sorted(unknown))}, expected {', '.join(names)}")
    wrk()
    FOLDER.mkdir(parents=True, exist_ok=True)
    console = Console(width=160)
    material = make_material(FOLDER)
    workload = make_workload(StockModel(material.checkpoint))
    results: dict[str, Result] = {}
    for number, contender in product(range(arguments.rounds), CONTENDERS):
        if contender.name in wanted:
            console.print(f"{number + 1}. {contender.title} …")
            result = measure(contender, material, workload, arguments.seconds)
            before = results.get(contender.name, result)
            results[contender.name] = better(before, result)
            store(list(results.values()))
    report(store(list(results.values())), console)
    plot(RESULTS, PLOT)
    console.print(f"Stored: {RESULTS.relative_to(ROOT)}, {PLOT.relative_to(ROOT)}")


def store(results: Sequence[Result]) -> list[dict[str, object]]:
    """Write what there is, so that a run that is stopped keeps what it measured."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    merged = merge(old.get("servers", []), results)
    document = {
        "servers": merged,
        "cpus": os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
    }
    RESULTS.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return merged


if __name__ == "__main__":
    main()
