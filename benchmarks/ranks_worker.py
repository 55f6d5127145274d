"""One rank of `benchmarks.ranks`: prints lines of JSON."""

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.criteo import kjt, random_batch
from benchmarks.wire import tcp_bytes
from torchrec_handler.archive.format import TABLES, TableEntry
from torchrec_handler.archive.read import read_index
from torchrec_handler.load.loader import load, load_follower
from torchrec_handler.load.process import become_worker
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.ranks import meet
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import TypedRequest

CPU = torch.device("cpu")
BATCHES, WARM = 40, 10
PAGE = 4096
ROWS_AT_ONCE = 10_000
"""Of each table, when all pages are looked up in."""
PIECE, CALLS = 1000, 4
"""Rows of a forward call, and calls of a batch, when calls follow one another."""
COLLECTION = "_module.sparse_arch.embedding_bag_collection"


def main() -> None:
    """Load, lead or follow, and say what was measured."""
    folder, dtype, *rows = sys.argv[1:]
    # Kernels that look up by themselves would hide where the time goes.
    options = Options.model_validate(
        {
            "kernels": {"off": ["graph", "dlrm"]},
            "sharding": {"exchange_dtype": dtype, "timeout_seconds": 60.0},
        }
    )
    become_worker(options, CPU)
    ranks = meet(leads=os.environ["RANK"] == "0")
    if ranks and not ranks.is_leader:
        follower = load_follower(Path(folder), options, CPU, ranks)
        follower.run()
        return
    predictor = load(Path(folder), options, CPU, ranks=ranks)
    _lead(predictor, Path(folder), list(map(int, rows)))
    if predictor.leader:
        _say(**_ahead(predictor, options, Path(folder)))
        predictor.leader.stop()


def _lead(predictor: Predictor, folder: Path, rows: Sequence[int]) -> None:
    """Time batches of so many rows, then look at the memory of all ranks."""
    entries = read_index(folder).tables
    tables = [entry.rows for entry in entries]
    spent: dict[str, list[float]] = defaultdict(list)
    module = predictor.module
    collection = module.get_submodule(COLLECTION)
    collection.forward = _timed(collection.forward, spent["collection"])
    if predictor.leader:
        predictor.leader.look_up = _asking(predictor.leader.look_up, spent)  # type: ignore[method-assign]
    with torch.inference_mode():
        for count in rows:
            batches = [random_batch(tables, count, seed) for seed in range(WARM + BATCHES)]
            for number, batch in enumerate(batches):
                if number == WARM:
                    for each in spent.values():
                        each.clear()
                    before = tcp_bytes()
                _timed(module, spent["whole"])(batch)
            sent = (tcp_bytes() - before) / BATCHES / 1e6
            _say(rows=count, **dict(_parts(spent)), MB=sent)
            for each in spent.values():
                each.clear()
        for ids in _of_every_page(entries):
            collection(kjt(len(tables), ids))
    # torchrun's own processes are this rank and the others, which wait to be asked.
    ranks_there = [one for one in psutil.Process(os.getppid()).children() if _rank(one) is not None]
    for one in sorted(ranks_there, key=lambda one: _rank(one) or 0):
        _say(rank=_rank(one), tables=_tables_gb(one), process=one.memory_full_info().pss / 1e9)


def _ahead(predictor: Predictor, options: Options, folder: Path) -> dict[str, float]:
    """A batch of several forward calls, by turns with the next one's lookups asked for and not."""
    tables = [entry.rows for entry in read_index(folder).tables]
    limits = options.limits.model_copy(update={"rows_per_forward": PIECE})
    options = options.model_copy(update={"limits": limits})
    ways = {
        "ahead": Engine("ranks", predictor, options),
        "not ahead": Engine("ranks", replace(predictor, leader=None), options),
    }
    spent: dict[str, list[float]] = defaultdict(list)
    for number in range(WARM + BATCHES):
        batch = random_batch(tables, CALLS * PIECE, number)
        request = TypedRequest(arrays={name: value.numpy() for name, value in batch.items()})
        for way in sorted(ways, reverse=number % 2 == 1):
            (answer,) = _timed(ways[way].predict, spent[way])([request])
            if isinstance(answer, Exception):
                raise answer
    ahead, without = (spent[way][WARM:] for way in ("ahead", "not ahead"))
    return {
        "ms, lookups asked for ahead": _median(ahead),
        "ms, not ahead": _median(without),
        "times as fast": statistics.median(a / b for a, b in zip(without, ahead, strict=True)),
    }


def _parts(spent: dict[str, list[float]]) -> Iterator[tuple[str, float]]:
    """Milliseconds, medians over the batches."""
    whole, collection = spent["whole"], spent["collection"]
    own = spent["own"] or collection
    asking = spent["asking"] or collection
    yield "batch ms", _median(whole)
    yield "lookup", _median(own)
    yield "exchange", _median([a - b for a, b in zip(asking, own, strict=True)])
    yield "gather", _median([a - b for a, b in zip(collection, asking, strict=True)])
    yield "dense", _median([a - b for a, b in zip(whole, collection, strict=True)])


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        found = call(*arguments)
        spent.append(time.perf_counter() - began)
        return found

    return timed


def _asking(look_up: Callable[..., Any], spent: dict[str, list[float]]) -> Callable[..., Any]:
    def timed(asked: Any, own: Any, *early: Any) -> Any:
        return look_up(asked, _timed(own, spent["own"]), *early)

    return _timed(timed, spent["asking"])


def _of_every_page(entries: Sequence[TableEntry]) -> Iterator[torch.Tensor]:
    """Ids [F * B] of rows in every page of all tables; small tables are gone through repeatedly."""
    step = min(PAGE // entry.row_bytes for entry in entries)
    for start in range(0, max(entry.rows for entry in entries), step * ROWS_AT_ONCE):
        ids = torch.arange(start, start + step * ROWS_AT_ONCE, step)
        yield torch.cat([ids % entry.rows for entry in entries]).int()


def _rank(process: psutil.Process) -> int | None:
    found = process.environ().get("RANK")
    return None if found is None else int(found)


def _tables_gb(process: psutil.Process) -> float:
    """Its share of the mapped tables."""
    return sum(one.pss for one in process.memory_maps() if one.path.endswith(f"/{TABLES}")) / 1e9


def _say(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
