"""The live copy of large tables: forward calls, memory of two workers, and copies that do not fit.

`python -m benchmarks.live` builds the Criteo DLRM of `benchmarks.scale` at full size, 12.1 GB of
int8, if it is not there, and asks one worker at a time in its own process: on the archive's own
map, on a live copy in shared memory, and on one in a tmpfs with huge pages. Memory of
23 GB does not hold two of these, so they take turns, and what the last one had is given back
before. A second worker then joins, for the memory of both. In the end a copy is made that deltas
wait for. Mounting takes root; without, huge pages and copies that do not fit are left out.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.criteo import CRITEO_ROWS
from benchmarks.live_worker import BATCHES
from benchmarks.scale import build, forget
from torchrec_handler.archive.delta import TableRows, read_head, write_delta
from torchrec_handler.archive.format import INDEX, TABLES, sha256
from torchrec_handler.archive.read import read_index
from torchrec_handler.updates.live import LIVE

STORED = ROOT / "build" / "live.json"
SHARED = Path("/dev/shm")  # noqa: S108  every Linux's
GROUPS = Path("/sys/fs/cgroup")
WORKER_BYTES = 600 * 10**6
"""A little more than a worker takes beside the copy."""
CHANGED = 10_000
"""Rows of a delta."""
OWN, SMALL, HUGE = "archive's map", "live, /dev/shm", "live, huge tmpfs"
Values = dict[str, Any]


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the full tables' rows")
    parser.add_argument("--archive", type=Path, help="a folder of benchmarks.scale's model")
    parser.add_argument("--rounds", type=int, default=2, help="of all ways, one after another")
    parser.add_argument(
        "--deltas", type=int, default=1000, help=f"that wait, of {CHANGED} rows each"
    )
    options = parser.parse_args(given)
    archive = options.archive or _archive(options.share)
    size = (archive / TABLES).stat().st_size
    rounds: list[Values] = []
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-live-")))
        places: dict[str, Path | None] = {OWN: None, SMALL: stack.enter_context(_in_shared())}
        if os.geteuid() == 0:
            room = f"huge=within_size,size={2 * size}"
            places[HUGE] = stack.enter_context(_mounted(folder / "huge", room))
        else:
            print("not root: no huge pages, and no copies that do not fit")  # noqa: T201
        (folder / "updates").mkdir()
        for _ in range(options.rounds):
            for way, place in places.items():
                forget(archive)
                found = measure(archive, way, folder / "updates", place)
                rounds.append(found)
                print(json.dumps(found), flush=True)  # noqa: T201
        if os.geteuid() == 0:
            forget(archive)
            refused = dict(refusals(archive, folder, size))
        forget(archive)
        publish(archive, folder / "updates", options.deltas)
        restart = measure(archive, SMALL, folder / "updates", places[SMALL])["copy_seconds"]
    report(rounds, refused, size)
    print(f"copy and {options.deltas} deltas: {restart:.1f} s")  # noqa: T201


def measure(archive: Path, way: str, updates: Path, place: Path | None) -> Values:
    """One way of holding the tables: figures of one worker, and the memory of two."""
    given = [] if place is None else [str(updates), str(place)]
    with _worker(archive, *given) as first:
        said = first()
        with _worker(archive, *given) as second:
            joined = second()
            pids = first.pid, second.pid
            memory = {name: sum(_rollup(pid)[name] for pid in pids) for name in ("Pss", "Rss")}
            memory |= {f"{name} alone": _rollup(pids[0])[name] for name in ("Pss",)}
            mapped = TABLES if place is None else LIVE
            tables = [_mapped(pid, mapped) for pid in pids]
            machine = _meminfo()
    for left in () if place is None else place.iterdir():
        shutil.rmtree(left)
    return {
        "way": way,
        "copy_seconds": said["copy_seconds"],
        "joined_seconds": joined["copy_seconds"],
        **{f"forward_us_{rows}": said["forward_us"][str(rows)] for rows in BATCHES},
        "workers_pss_gb": memory["Pss"] / 1e9,
        "workers_rss_gb": memory["Rss"] / 1e9,
        "tables_pss_gb": sum(each["Pss"] for each in tables) / 1e9,
        "tables_huge_gb": sum(each["ShmemPmdMapped"] + each["FilePmdMapped"] for each in tables)
        / len(tables)
        / 1e9,
        "machine_shmem_gb": machine["Shmem"] / 1e9,
        "machine_shmem_huge_gb": machine["ShmemHugePages"] / 1e9,
    }


def publish(archive: Path, updates: Path, count: int) -> None:
    """Deltas of rows anywhere in the tables, which get other rows of theirs."""
    entries = read_index(archive).tables
    total = sum(entry.rows for entry in entries)
    held = np.memmap(archive / TABLES, np.uint8, "r")
    dice = np.random.default_rng(0)
    base = previous = sha256(archive / INDEX)
    run = str(uuid.uuid4())
    for sequence in range(1, count + 1):
        tables = []
        for entry in entries:
            ids = np.unique(dice.integers(0, entry.rows, CHANGED * entry.rows // total))
            block = held[entry.offset :][: entry.nbytes].reshape(-1, entry.row_bytes)
            tables.append(TableRows(key=entry.key, ids=ids, rows=block[ids[::-1]]))
        path = write_delta(
            updates, base=base, run=run, sequence=sequence, previous=previous, tables=tables
        )
        previous = read_head(path).digest


def refusals(archive: Path, folder: Path, size: int) -> Iterator[tuple[str, str]]:
    """What a worker says that has no room: of the tmpfs, then of its container's memory."""
    with _mounted(folder / "little", f"size={size // 2}") as place:
        yield "tmpfs", _refused(archive, folder / "updates", place)
    unified = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if unified else GROUPS / "memory") / "bench-live"
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        print(f"no control group: {error}")  # noqa: T201
        return
    try:
        limit = group / ("memory.max" if unified else "memory.limit_in_bytes")
        limit.write_text(str(WORKER_BYTES + size // 2))
        with _in_shared() as place:
            yield "memory", _refused(archive, folder / "updates", place, group / "cgroup.procs")
    finally:
        group.rmdir()


def _refused(archive: Path, updates: Path, place: Path, procs: Path | None = None) -> str:
    command = _command(archive, str(updates), str(place))
    if procs is not None:
        command = ["sh", "-c", f'echo $$ > {procs}; exec "$@"', "sh", *command]
    done = subprocess.run(  # noqa: S603  our own module
        command, cwd=ROOT, input="\n", capture_output=True, text=True, check=False
    )
    for left in place.iterdir():
        shutil.rmtree(left)
    lines = [line.removeprefix("[rank0]: ") for line in done.stderr.splitlines()]
    return lines[-1] if done.returncode and lines else f"NOT refused, exit status {done.returncode}"


class _Worker:
    """A worker in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process, self.pid = process, process.pid

    def __call__(self) -> Values:
        """What it measured."""
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        for line in self._process.stdout:
            if line.startswith("{"):
                said: Values = json.loads(line)
                return said
        message = f"the worker ended with {self._process.wait()}"
        raise RuntimeError(message)


@contextmanager
def _worker(archive: Path, *given: str) -> Iterator[_Worker]:
    with subprocess.Popen(  # noqa: S603  our own module
        _command(archive, *given),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield _Worker(process)
        finally:
            process.communicate("\n")


def _command(archive: Path, *given: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.live_worker", str(archive), *given]


@contextmanager
def _in_shared() -> Iterator[Path]:
    """A folder in the machine's shared memory."""
    with tempfile.TemporaryDirectory(prefix="bench-live-", dir=SHARED) as place:
        yield Path(place)


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "bench-live", str(folder)]
    subprocess.run(command, check=True)  # noqa: S603
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S603, S607


def _archive(share: float) -> Path:
    folder = ROOT / "build" / "live"
    name = f"criteo-{share:g}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        build(folder, name, [max(3, int(rows * share)) for rows in CRITEO_ROWS])
    return folder / name


def _kilobytes(text: str) -> dict[str, int]:
    found = re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)
    return {name: 1024 * int(value) for name, value in found}


def _rollup(pid: int) -> dict[str, int]:
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))


def _meminfo() -> dict[str, int]:
    return _kilobytes(Path("/proc/meminfo").read_text("ascii"))


def _mapped(pid: int, name: str) -> dict[str, int]:
    """Of a process's mappings of files of a name."""
    said = Path(f"/proc/{pid}/smaps").read_text("utf-8")
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", said)
    found = [_kilobytes(each) for each in blocks if each.partition("\n")[0].endswith(f"/{name}")]
    return {key: sum(each[key] for each in found) for key in found[0]}


def report(rounds: Sequence[Values], refused: Mapping[str, str], size: int) -> None:
    """Print and store medians, and each way's forward calls as multiples of the archive's."""
    median: Callable[[str, str], float | None] = lambda way, name: _median(rounds, way, name)  # noqa: E731
    ways = dict.fromkeys(each["way"] for each in rounds)
    medians: dict[str, Values] = {}
    for way in ways:
        medians[way] = {name: median(way, name) for name in rounds[0] if name != "way"}
        for rows in BATCHES:
            own, found = (median(each, f"forward_us_{rows}") for each in (OWN, way))
            medians[way][f"times_archive_{rows}"] = found / own if own and found else None
    table = Table("", *ways)
    for name in next(iter(medians.values())):
        shown = [found[name] for found in medians.values()]
        table.add_row(name, *("" if value is None else f"{value:,.2f}" for value in shown))
    console = Console(width=120)
    console.print(table)
    for where, line in refused.items():
        console.print(f"without room ({where}): {line}", soft_wrap=True, markup=False)
    document = {"tables_gb": size / 1e9, "medians": medians, "refused": refused, "rounds": rounds}
    STORED.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _median(rounds: Sequence[Values], way: str, name: str) -> float | None:
    found = [each[name] for each in rounds if each["way"] == way and each[name] is not None]
    return statistics.median(found) if found else None


if __name__ == "__main__":
    main()
