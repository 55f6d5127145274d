"""Tables larger than a worker should hold: seconds, memory and rows a second, by workers.

`make bench-scale` runs it at full size: 12.1 GB of int8 tables served by 1, 2 and 4 workers, and
at a third of it beside the ordinary ways, in which each worker holds its tables: it quantizes a
float checkpoint (15 GB on disk meanwhile), or reads with `torch.load` what was quantized before.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.criteo import (
    CRITEO_ROWS,
    DENSE_FEATURES,
    CriteoConfig,
    CriteoPredictFactory,
    make_weights,
)
from benchmarks.ordinary import TABLES, WEIGHTS, beside
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe
from torchrec_handler.archive.format import INDEX, MANIFEST, sha256
from torchrec_handler.archive.format import TABLES as MAPPED
from torchrec_handler.message.predictor_pb2 import (
    FloatFeatures,
    PredictionRequest,
    SparseFeatures,
)

ROWS = 1000
BODIES = 40
CONNECTIONS = 4
HEADERS = {"Content-Type": "application/x-protobuf"}


@dataclass(frozen=True, kw_only=True)
class Served:
    """One way of serving one model with some workers."""

    way: str
    """mapped or read."""
    tables_gb: float
    workers: int
    seconds_to_answer: float
    """From asking TorchServe for the workers that were not there yet to the next answer, all of
    them being ready."""
    workers_gb: float
    """Proportional memory (PSS) of the workers."""
    mapped_gb: float
    """What of it are pages of `tables.bin` that the load has touched, one copy for all."""
    server_gb: float
    """The same of every process of the server, Java included."""
    rows_per_second: float


@dataclass(frozen=True, kw_only=True)
class Started:
    """One worker's steps in a process of their own, without a server."""

    way: str
    """mapped; read: with `torch.load`; converted: quantized from a float checkpoint."""
    tables_gb: float
    cache: str
    """warm: the machine has the files in memory; cold: it has not read them yet."""
    seconds_after_torch: float
    """From having imported torch to the first answer."""
    lookup_us: float
    """Median of looking 1,000 rows up, all tables, warm."""


def build(folder: Path, name: str, rows: Sequence[int]) -> Path:
    """Build a model without writing a float, and the tables as the ordinary way reads them."""
    config = CriteoConfig(rows=tuple(rows))
    return build_archive(
        model_name=name,
        version="1.0",
        factory=CriteoPredictFactory,
        configs={"config.pkl": config},
        weights=make_weights(config),
        export_path=folder,
        archive_format="no-archive",
        force=True,
        progress=True,
    )


def make_ordinary(archive: Path, rows: Sequence[int]) -> Path:
    """The same archive with the ordinary handler, its tables quantized and the float checkpoint."""
    folder = archive.with_name(f"{archive.name}-ordinary")
    files = beside(folder)
    for old in (folder, files):
        shutil.rmtree(old, ignore_errors=True)
    files.mkdir()
    shutil.copytree(archive, folder, copy_function=os.link)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["model"].update(modelName=folder.name, handler="benchmarks.ordinary_handler")
    _replace(folder / MANIFEST, manifest)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["sha256"][MANIFEST] = sha256(folder / MANIFEST)
    _replace(folder / INDEX, index)
    size = (archive / MAPPED).stat().st_size
    tables = torch.from_file(str(archive / MAPPED), shared=True, size=size, dtype=torch.uint8)
    torch.save(tables, files / TABLES)
    weights = make_weights(CriteoConfig(rows=tuple(rows)))
    torch.save({name: value.contiguous() for name, value in weights.items()}, files / WEIGHTS)
    return folder


def _replace(path: Path, content: Any) -> None:
    """Write JSON to a new file: the old one is the other archive's, too."""
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")


def bodies(rows: Sequence[int], seed: int = 0) -> list[bytes]:
    """Requests of `ROWS` rows with one id a feature, anywhere in the tables."""
    random = np.random.default_rng(seed)
    lengths = np.ones((len(rows), ROWS), dtype=np.int32)
    return [
        PredictionRequest(
            batch_size=ROWS,
            float_features=FloatFeatures(
                num_features=DENSE_FEATURES,
                values=random.standard_normal((ROWS, DENSE_FEATURES), dtype=np.float32).tobytes(),
            ),
            id_list_features=SparseFeatures(
                num_features=len(rows),
                lengths=lengths.tobytes(),
                values=np.concatenate([random.integers(0, most, ROWS) for most in rows])
                .astype(np.int32)
                .tobytes(),
            ),
        ).SerializeToString()
        for _ in range(BODIES)
    ]


def serve(
    folder: Path,
    archive: Path,
    requests: Sequence[bytes],
    *,
    workers: Sequence[int],
    seconds: float,
) -> Iterator[Served]:
    """Serve an archive of the model store by more and more workers, each time for some seconds."""
    shutil.rmtree(folder / "server", ignore_errors=True)
    with TorchServe(
        folder / "server", model_store=archive.parent, environment={"PYTHONPATH": str(ROOT)}
    ) as server:
        for count in workers:
            began = time.perf_counter()
            first = count == workers[0]
            answer = server.register(archive) if first else server.scale(archive.name, count)
            if not answer.is_success:
                raise RuntimeError(answer.text + server.log()[-3000:])
            ask(server, archive.name, requests[0])
            to_first = time.perf_counter() - began
            rows = load(partial(ask, server, archive.name), requests, seconds)
            pids = {worker["pid"] for worker in server.workers(archive.name)}
            memory = {one.pid: one.memory_full_info().pss for one in server.processes()}
            mapped = sum(
                region.pss
                for pid in pids
                for region in psutil.Process(pid).memory_maps()
                if region.path.endswith(MAPPED)
            )
            yield Served(
                way="read" if (beside(archive) / TABLES).exists() else "mapped",
                tables_gb=(archive / MAPPED).stat().st_size / 1e9,
                workers=len(pids),
                seconds_to_answer=to_first,
                workers_gb=sum(memory[pid] for pid in pids) / 1e9,
                mapped_gb=mapped / 1e9,
                server_gb=sum(memory.values()) / 1e9,
                rows_per_second=rows,
            )


def ask(server: TorchServe, name: str, body: bytes) -> None:
    """Ask; anything but an answer ends the benchmark."""
    answer = server.predict(name, body, headers=HEADERS)
    if answer.status_code != 200:
        raise RuntimeError(answer.text)


def load(send: Callable[[bytes], None], requests: Sequence[bytes], seconds: float) -> float:
    """Send requests over some connections.

    Returns:
        Rows a second.
    """
    end = time.perf_counter() + seconds

    def client(offset: int) -> int:
        sent = 0
        while time.perf_counter() < end:
            send(requests[(offset + sent * CONNECTIONS) % len(requests)])
            sent += 1
        return sent

    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        sent = sum(pool.map(client, range(CONNECTIONS)))
    return sent * ROWS / (time.perf_counter() - began)


def start(archive: Path, way: str, cache: str) -> Started:
    """Run one worker's steps in a fresh process."""
    if cache == "cold":
        forget(archive)
    command = [sys.executable, "-m", "benchmarks.scale_worker", str(archive), way]
    done = subprocess.run(  # noqa: S603  our own module
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return Started(
        way=way,
        cache=cache,
        tables_gb=(archive / MAPPED).stat().st_size / 1e9,
        **json.loads(done.stdout.splitlines()[-1]),
    )


def forget(place: Path) -> None:
    """Let the kernel drop a file, or an archive's files, from memory."""
    for path in (place, *place.rglob("*"), *beside(place).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "scale")
    parser.add_argument("--shrink", type=int, default=1, help="divide every table's rows by this")
    parser.add_argument("--seconds", type=float, default=10, help="of load for each figure")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2, 4))
    arguments = parser.parse_args(given)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    full = [max(3, rows // arguments.shrink) for rows in CRITEO_ROWS]
    third = [max(3, rows // 3) for rows in full]
    served: list[Served] = []
    started: list[Started] = []
    for name, rows in (("third", third), ("full", full)):
        began = time.perf_counter()
        archive = build(folder, name, rows)
        print(f"{name}: built in {time.perf_counter() - began:.0f} s", flush=True)  # noqa: T201
        requests = bodies(rows)
        ways = [(archive, "mapped")]
        if name == "third":
            ordinary = make_ordinary(archive, rows)
            ways += [(ordinary, "converted"), (ordinary, "read")]
        for one, way in ways:
            for cache in ("cold", "warm"):
                started.append(start(one, way, cache))
                print(started[-1], flush=True)  # noqa: T201
            if way == "converted":
                (beside(one) / WEIGHTS).unlink()
                continue  # Four workers at once would hold the floats of four.
            served_by = serve(
                folder, one, requests, workers=arguments.workers, seconds=arguments.seconds
            )
            for figures in served_by:
                served.append(figures)
                print(figures, flush=True)  # noqa: T201
        for one in {folder for folder, _ in ways}:
            shutil.rmtree(one)
            shutil.rmtree(beside(one), ignore_errors=True)
    report(served, started, folder / "scale.json")


def report(served: Sequence[Served], started: Sequence[Started], path: Path) -> None:
    """Print and store the figures."""
    for title, rows in (("A worker alone", started), ("Served", served)):
        table = Table(title=title, title_justify="left")
        for name in asdict(rows[0]):
            table.add_column(name.replace("_", " "), justify="right")
        for row in rows:
            table.add_row(
                *(
                    f"{value:,.2f}" if isinstance(value, float) else str(value)
                    for value in asdict(row).values()
                )
            )
        Console(width=140).print(table)
    document = {
        "started": [asdict(row) for row in started],
        "served": [asdict(row) for row in served],
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "cpus": os.cpu_count(),
    }
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
