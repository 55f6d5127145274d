"""What a rank does for a request: looks ids up at random, and exchanges bytes over loopback.

`python -m benchmarks.exchange` runs it, in a minute and with 3 GB. `torchrec-archiver plan` counts
with what it fits to the lookups; docs/scale.md with both. Letters: B rows, D width, N ids.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from torchrec_archiver.sizes import row_bytes
from torchrec_handler.tables.rows import DATA_TYPES

ROWS = 1000
FEATURES = 8
"""Of a table: what a call costs, whatever it looks up, is shared by many lists."""
WIDTHS = (16, 64, 256)
LONG = 10
"""Ids of a list, beside lists of one."""
TIMES, EXCHANGES = 20, 100
SIZES = (64_000, 512_000, 4_096_000)
"""Bytes that each other rank sends to the first one."""
PROCESSES = (2, 4)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """Of 8,000 lists in one table that no cache holds."""

    dtype: str
    width: int
    ids: int
    """Of a list."""
    ns_per_id: float
    """Median, of the processor's time: others may be on it."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One process having bytes of each other one: what the quickest tenth of times took at most."""

    processes: int
    nbytes: int
    """Of each."""
    all_to_all_us: float
    """`all_to_all_single`, in which only the first rank is sent anything."""
    asked_us: float
    """The first rank sends ids, a tenth of the bytes, and waits for the answers."""


def lookups(buffer: torch.Tensor) -> Iterator[Lookup]:
    """Time lookups of random rows, types and widths by turns.

    Args:
        buffer: [bytes] uint8, of all tables in turn.
    """
    generator = torch.Generator().manual_seed(0)
    cases = [(dtype, width, ids) for dtype in DATA_TYPES for width in WIDTHS for ids in (1, LONG)]
    operators = {case: _operator(buffer, *case[:2]) for case in cases}
    spent: dict[tuple[str, int, int], list[float]] = {case: [] for case in cases}
    with torch.inference_mode():
        for _ in range(TIMES):
            for case, operator in operators.items():
                dtype, width, ids = case
                rows = buffer.numel() // row_bytes(width, dtype)
                lists = FEATURES * ROWS
                drawn = torch.randint(0, rows, (lists * ids,), generator=generator).int()
                offsets = torch.arange(0, lists * ids + 1, ids, dtype=torch.int32)
                began = time.process_time()
                operator(drawn, offsets)
                spent[case].append((time.process_time() - began) / drawn.numel())
    for (dtype, width, ids), times in spent.items():
        nanoseconds = statistics.median(times) * 1e9
        yield Lookup(dtype=dtype, width=width, ids=ids, ns_per_id=nanoseconds)


def _operator(buffer: torch.Tensor, dtype: str, width: int) -> Any:
    rows = buffer.numel() // row_bytes(width, dtype)
    operator = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("table", rows, width, DATA_TYPES[dtype].fbgemm, EmbeddingLocation.HOST)],
        pooling_mode=PoolingMode.SUM,
        feature_table_map=[0] * FEATURES,
        device="cpu",
        row_alignment=1,
    )
    operator.reset_weights_placements_and_offsets(torch.device("cpu"), EmbeddingLocation.HOST.value)
    operator.recompute_module_buffers()
    operator.weights_host = buffer
    operator.weight_initialized = True
    return operator


def fit(found: Sequence[Lookup]) -> dict[str, float]:
    """Nanoseconds of a list, a pooled value, an id, and a value of each data type.

    By least squares of the ratios.
    """
    dtypes = [*DATA_TYPES]
    matrix, right = [], []
    for one in found:
        values = [one.width * (one.dtype == dtype) for dtype in dtypes]
        parts = [1 / one.ids, one.width / one.ids, 1.0, *values]
        matrix.append([part / one.ns_per_id for part in parts])
        right.append(1.0)
    solved = np.linalg.lstsq(np.array(matrix), np.array(right), rcond=None)[0]
    return dict(zip(("list", "pooled", "id", *dtypes), solved.tolist(), strict=True))


def exchange(processes: int, sizes: Sequence[int]) -> list[Exchange]:
    """Time both ways of having rows of other ranks, in processes that gloo connects."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, sizes, f"{folder}/store", queue)
        ranks = [spawn.Process(target=_rank, args=(rank, *given)) for rank in range(processes)]
        for rank in ranks:
            rank.start()
        found: list[Exchange] = queue.get()
        for rank in ranks:
            rank.join()
    return found


def _rank(rank: int, processes: int, sizes: Sequence[int], store: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    found = []
    for nbytes in sizes:
        ways = (_all_to_all(rank, processes, nbytes), _ask(rank, processes, nbytes))
        took = [statistics.quantiles(_timed(way), n=10)[0] * 1e6 for way in ways]
        found.append(
            Exchange(
                processes=processes,
                nbytes=nbytes,
                all_to_all_us=took[0],
                asked_us=took[1],
            )
        )
    if rank == 0:
        queue.put(found)
    dist.destroy_process_group()


def _timed(call: Callable[[], object]) -> list[float]:
    spent = []
    for _ in range(EXCHANGES):
        dist.barrier()
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return spent


def _all_to_all(rank: int, processes: int, nbytes: int) -> Callable[[], object]:
    given = [nbytes if rank and not to else 0 for to in range(processes)]
    taken = [nbytes if sender and not rank else 0 for sender in range(processes)]
    sent = torch.zeros(sum(given), dtype=torch.uint8)
    received = torch.zeros(sum(taken), dtype=torch.uint8)
    return lambda: dist.all_to_all_single(received, sent, taken, given)


def _ask(rank: int, processes: int, nbytes: int) -> Callable[[], object]:
    ids = torch.zeros(nbytes // 10, dtype=torch.uint8)
    rows = [torch.zeros(nbytes, dtype=torch.uint8) for _ in range(processes)]

    def lead() -> None:
        others = range(1, processes)
        work: list[Any] = [dist.isend(ids, other) for other in others]
        work += [dist.irecv(rows[other], other) for other in others]
        for each in work:
            each.wait()

    def follow() -> None:
        dist.recv(ids, 0)
        dist.send(rows[rank], 0)

    return follow if rank else lead


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "exchange")
    parser.add_argument("--table-bytes", type=int, default=3_000_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    # numpy asks for huge pages, as tables are mapped in.
    buffer = torch.from_numpy(np.zeros(arguments.table_bytes, dtype=np.uint8))
    buffer.fill_(1)
    found = list(lookups(buffer))
    del buffer
    fitted = fit(found)
    exchanged = [one for count in arguments.processes for one in exchange(count, SIZES)]
    _print("Lookups of random rows", found)
    said = ", ".join(f"{name} {value:.2f} ns" for name, value in fitted.items())
    Console(width=100).print(said, highlight=False)
    _print("Bytes of other processes", exchanged)
    document = {
        "lookups": [asdict(one) for one in found],
        "fitted_ns": fitted,
        "exchanges": [asdict(one) for one in exchanged],
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "exchange.json"
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


def _print(title: str, found: Sequence[Lookup] | Sequence[Exchange]) -> None:
    table = Table(title=title, title_justify="left")
    for name in asdict(found[0]):
        table.add_column(name.replace("_", " "), justify="right")
    for one in found:
        table.add_row(
            *(
                f"{value:,.1f}" if isinstance(value, float) else str(value)
                for value in asdict(one).values()
            )
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
