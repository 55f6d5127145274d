"""A delta between two checkpoints of large tables: seconds, processor time, memory, bytes read.

`python -m benchmarks.deltas` builds the Criteo DLRM of a float32 checkpoint, changes a hundredth of
its rows and runs `torchrec-archiver delta`, with the files not yet in memory. Its tables are views
of one storage as long as the largest, at full size 12.5 GB for 45.6 GB of floats, so that a disk
holds it beside the archive. Pages are given back behind the reader, so each table's are read from
the disk again; what was read is shown, as proof.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import ROOT
from benchmarks.criteo import CRITEO_ROWS, CriteoConfig, CriteoPredictFactory, build_model
from benchmarks.scale import forget
from torchrec_archiver import build_archive
from torchrec_handler.archive.format import TABLES

BLOCK = 2**18
"""Rows drawn at a time."""
EVERY = 100
"""Of so many rows one changes."""
WIDTH = 64
DTYPES = ("float32", "float16", "bfloat16")
POLL_SECONDS = 0.02


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deltas", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "deltas")
    parser.add_argument("--share", type=float, default=1.0, help="of the full tables' rows")
    parser.add_argument(
        "--line",
        action="store_true",
        help="rows are windows of one line of numbers, so that a disk has next to nothing to read",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the checkpoint's rows"
    )
    parser.add_argument(
        "--keep", action="store_true", help="archive and checkpoint, for later runs"
    )
    options = parser.parse_args(given)
    kind = f"{options.dtype}-line" if options.line else options.dtype
    folder: Path = options.folder / f"{options.share:g}-{kind}"
    archive, weights = folder / "criteo", folder / "weights.pt"
    if not weights.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = [max(3, int(rows * options.share)) for rows in CRITEO_ROWS]
        stride = 1 if options.line else WIDTH
        prepare(folder, rows, stride=stride, dtype=getattr(torch, options.dtype))
    shutil.rmtree(folder / "updates", ignore_errors=True)
    (folder / "updates").mkdir()
    try:
        found = run(archive, weights, folder / "updates")
    finally:
        shutil.rmtree(folder / "updates")
    found |= {
        "share": options.share,
        "kind": kind,
        "tables_gb": (archive / TABLES).stat().st_size / 1e9,
    }
    (folder.parent / "deltas.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    for name, value in found.items():
        print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")  # noqa: T201
    if not options.keep:
        shutil.rmtree(folder)


def prepare(folder: Path, rows: Sequence[int], *, stride: int, dtype: torch.dtype) -> None:
    """Build the archive of one checkpoint, and leave the next one beside it.

    Args:
        folder: for both.
        rows: of each table.
        stride: numbers from the start of a row to that of the next one.
        dtype: of them.
    """
    config = CriteoConfig(rows=tuple(rows), width=WIDTH)
    storage = folder / "storage.bin"
    count = (max(rows) + len(rows)) * stride + WIDTH
    line = torch.from_file(str(storage), shared=True, size=count, dtype=dtype)
    torch.manual_seed(0)
    for start in range(0, count, BLOCK * WIDTH):
        line[start : start + BLOCK * WIDTH].normal_(std=0.05)
    weights = _weights(config, line, stride)
    before = folder / "before.pt"
    torch.save(weights, before)
    storage.unlink()
    del weights, line
    build_archive(
        model_name="criteo",
        version="1.0",
        factory=CriteoPredictFactory,
        configs={"config.pkl": config},
        weights=before,
        export_path=folder,
        archive_format="no-archive",
        progress=True,
    )
    # A row's first number; of a line, those of as many rows.
    _numbers(before, count, dtype)[:: EVERY * WIDTH] += 0.1
    before.rename(folder / "weights.pt")


def _numbers(checkpoint: Path, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The one storage of so many numbers in a file of `torch.save`, to be written to."""
    size = count * dtype.itemsize
    with zipfile.ZipFile(checkpoint) as file:
        (name,) = (each.filename for each in file.infolist() if each.file_size == size)
    record = name.partition("/")[2]
    start = torch._C.PyTorchFileReader(str(checkpoint)).get_record_offset(record)  # noqa: SLF001
    whole = torch.from_file(str(checkpoint), shared=True, size=start + size, dtype=torch.uint8)
    return whole[start:].view(dtype)


def _weights(config: CriteoConfig, line: torch.Tensor, stride: int) -> dict[str, torch.Tensor]:
    """By the model's own names; a table's rows begin one behind those of the table before."""
    torch.manual_seed(0)
    found = {}
    tables = iter(enumerate(config.rows))
    for name, value in build_model(config, "meta").state_dict().items():
        if value.is_meta:
            first, rows = next(tables)
            shape, strides = (rows, WIDTH), (stride, 1)
            found[name] = line.as_strided(shape, strides, first * stride)
        else:
            found[name] = value
    return found


def run(archive: Path, weights: Path, updates: Path) -> Mapping[str, Any]:
    """Run the command with cold files, and watch it."""
    forget(archive)
    forget(weights)
    command = [sys.executable, "-m", "torchrec_archiver", "delta", "--base", str(archive)]
    command += ["--weights", str(weights), "--folder", str(updates)]
    began = time.perf_counter()
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    own = peak = read = 0
    spent = 0.0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
            own = max(own, 1024 * int(lines["RssAnon"].split()[0]))
            peak = max(peak, 1024 * int(lines["VmHWM"].split()[0]))
            read = process.io_counters().read_bytes
            times = process.cpu_times()
            spent = times.user + times.system
        except (OSError, KeyError, psutil.Error):
            pass
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - began
    deltas = list(updates.glob("*.delta"))
    return {
        "seconds": seconds,
        "processor_seconds": spent,
        "resident_peak_gb": peak / 1e9,
        "of_its_own_peak_gb": own / 1e9,
        "read_gb": read / 1e9,
        "deltas": len(deltas),
        "deltas_gb": sum(path.stat().st_size for path in deltas) / 1e9,
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
