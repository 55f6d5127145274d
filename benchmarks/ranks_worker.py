"""One rank of `benchmarks.ranks`: prints lines of JSON."""

import json
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.criteo import DENSE_FEATURES
from torchrec_handler.archive.format import TABLES
from torchrec_handler.archive.read import read_index
from torchrec_handler.load.loader import load, load_follower
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
from torchrec_handler.ranks import meet

CPU = torch.device("cpu")
BATCHES, WARM = 40, 10
TOUCHED = 300
"""Batches of 1,000 random ids a table before memory is looked at."""
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
        _say(mapped_gb=_mapped_gb())
        return
    predictor = load(Path(folder), options, CPU, ranks=ranks)
    tables = [entry.rows for entry in read_index(Path(folder)).tables]
    spent: dict[str, list[float]] = defaultdict(list)
    module = predictor.module
    collection = module.get_submodule(COLLECTION)
    collection.forward = _timed(collection.forward, spent["collection"])
    if predictor.leader:
        predictor.leader.look_up = _asking(predictor.leader.look_up, spent)  # type: ignore[method-assign]
    with torch.inference_mode():
        for count in map(int, rows):
            batches = [_batch(tables, count, seed) for seed in range(WARM + BATCHES)]
            for number, batch in enumerate(batches):
                if number == WARM:
                    for each in spent.values():
                        each.clear()
                _timed(module, spent["whole"])(batch)
            _say(rows=count, **dict(_parts(spent)))
            for each in spent.values():
                each.clear()
        for seed in range(TOUCHED):
            module(_batch(tables, 1000, seed))
    _say(mapped_gb=_mapped_gb())
    if predictor.leader:
        predictor.leader.stop()


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
    def timed(asked: Any, own: Any) -> Any:
        return look_up(asked, _timed(own, spent["own"]))

    return _timed(timed, spent["asking"])


def _batch(tables: list[int], rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, most, (rows,), generator=generator) for most in tables]
    return {
        "float_features": torch.rand(rows, DENSE_FEATURES, generator=generator),
        "id_list_features.lengths": torch.ones(len(tables) * rows, dtype=torch.int32),
        "id_list_features.values": torch.cat(ids).int(),
    }


def _mapped_gb() -> float:
    """Resident bytes of this process's mapping of the tables."""
    said = Path("/proc/self/smaps").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", said)
    found = [block for block in blocks if block.partition("\n")[0].endswith(f"/{TABLES}")]
    return (
        sum(int(re.findall(r"^Rss: +(\d+)", block, re.MULTILINE)[0]) for block in found)
        * 1024
        / 1e9
    )


def _say(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
