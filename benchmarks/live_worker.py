"""One worker of `benchmarks.live`: says what it measured, in a line of JSON, and stays until told.

python -m benchmarks.live_worker ARCHIVE [UPDATES PLACE]
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.criteo import random_batch
from torchrec_handler.archive.read import read_index
from torchrec_handler.load.loader import load
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
from torchrec_handler.updates.served import Served, serve_updates

CPU = torch.device("cpu")
NAME = "criteo"
BATCHES: Mapping[int, int] = {1000: 150, 1: 1500}
"""Rows of a batch -> how many different ones; the first third warms up."""


def main() -> None:
    """Load, measure, say it, and wait for a line."""
    archive, *updates = sys.argv[1:]
    given = {"updates": dict(zip(("folder", "place"), updates, strict=True))} if updates else {}
    options = Options.model_validate(given)
    become_worker(options, CPU)
    predictor = load(Path(archive), options, CPU)
    began = time.perf_counter()
    served = serve_updates(options, NAME, Path(archive), predictor, ())
    if served is not None:
        served.ready()
    copied = time.perf_counter() - began
    assert predictor.tables is not None  # noqa: S101  the archive has some
    predictor.tables.bring()
    rows = [entry.rows for entry in read_index(Path(archive)).tables]
    with torch.inference_mode():
        spent = {
            count: _median(
                [random_batch(rows, count, seed) for seed in range(most)], predictor, served
            )
            for count, most in BATCHES.items()
        }
    _say(copy_seconds=copied if updates else None, forward_us=spent)
    sys.stdin.readline()


def _median(
    batches: Sequence[Mapping[str, torch.Tensor]], predictor: Any, served: Served[Any] | None
) -> float:
    """Microseconds of a whole forward call, with what workers do around it."""
    spent = []
    for batch in batches:
        began = time.perf_counter()
        _forward(predictor.module, batch, served)
        spent.append((time.perf_counter() - began) * 1e6)
    return statistics.median(spent[len(spent) // 3 :])


def _forward(
    module: Callable[..., Any], batch: Mapping[str, torch.Tensor], served: Served[Any] | None
) -> None:
    if served is None:
        module(batch)
        return
    served.enter()
    try:
        served.model.module(batch)
    finally:
        served.leave()


def _say(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
