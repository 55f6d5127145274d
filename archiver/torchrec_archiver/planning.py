"""Where TorchRec's planner puts tables on ranks, and what each rank then holds, looks up and sends.

Tables are known by their sizes alone, out of an archive's index or a file, and are on `meta`: none
is read, so that ten terabytes are planned as fast as ten megabytes.

Letters: B rows of a request, D width of a table, N ids of a table in a request.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.quant.embedding_modules import EmbeddingBagCollection

from torchrec_archiver.sizes import Sizes
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.shard import shard
from torchrec_handler.options import Sharding, ShardingType
from torchrec_handler.tables.compact import LEAST_LISTS, MOST_KEPT
from torchrec_handler.tables.find import find_collections

DATA_TYPES: Mapping[str, DataType] = {
    "float32": DataType.FP32,
    "float16": DataType.FP16,
    "int8": DataType.INT8,
    "int4": DataType.INT4,
    "int2": DataType.INT2,
}
EXCHANGED_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Data type of pooled rows on their way -> bytes of a value."""
ID_BYTES = LENGTH_BYTES = 4
MOST_RANKS = 1024
"""The planner has something of every table for each of them."""

# What `python -m benchmarks.exchange` measured: docs/scale.md says where and how.
SECONDS_PER_LIST = 55e-9
"""Of the ids of one row and feature, whatever is in it."""
SECONDS_PER_POOLED = 0.4e-9
"""Of the D values that a list gives."""
SECONDS_PER_ID = 35e-9
SECONDS_PER_VALUE: Mapping[str, float] = {
    "float32": 0.55e-9,
    "float16": 0.35e-9,
    "int8": 0.3e-9,
    "int4": 0.45e-9,
    "int2": 0.5e-9,
}
"""Of the D of each id, by the data type that it is decoded from."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the ranks at once."""

    rows: int
    """B"""
    exchange_dtype: str
    """One of `EXCHANGED_BYTES`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The ranks, and how tables are to be laid over them."""

    nodes: int
    ranks_per_node: int
    type: ShardingType
    """Of every table that `per_table` does not name."""
    per_table: Mapping[str, ShardingType]

    @property
    def ranks(self) -> int:
        """The world size."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a table on one rank."""

    table: Sizes
    rank: int
    rows: int

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.rows * self.table.row_bytes

    def lists(self, rows: int) -> int:
        """How many lists of ids a request of B rows has for it, the empty ones included."""
        return rows * self.table.features

    def ids(self, rows: int) -> float:
        """How many ids they hold."""
        return self.lists(rows) * self.table.pooling_factor * self.rows / self.table.rows

    def full(self, rows: int) -> float:
        """How many of them hold any, ids being drawn at random."""
        ids, share = self.table.pooling_factor, self.rows / self.table.rows
        return self.lists(rows) * (1 - (1 - share) ** ids if ids > 1 else share * ids)

    def distinct(self, rows: int) -> float:
        """How many ids there are, one of a feature counted once, ids being drawn at random."""
        features = self.table.features
        drawn = self.ids(rows) / features
        missed: float = (1 - 1 / self.rows) ** drawn
        return features * self.rows * (1 - missed)

    def seconds(self, rows: int) -> float:
        """How long they are looked up."""
        width, value = self.table.width, SECONDS_PER_VALUE[self.table.dtype]
        per_list, per_id = SECONDS_PER_LIST + width * SECONDS_PER_POOLED, SECONDS_PER_ID
        return self.lists(rows) * per_list + self.ids(rows) * (per_id + width * value)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What one rank has to do, as `--json` prints it."""

    rank: int
    node: int
    tables: int
    nbytes: int
    missing: int
    """Bytes that it has too few; 0 where its tables fit, or nobody said what it has."""
    lookup_seconds: float
    received: int
    """Bytes of lengths and ids of one request, from the rank that leads, rank 0."""
    answered: int
    """Bytes of pooled rows, to it."""


def lay_out(tables: Sequence[Sizes], layout: Layout) -> list[Part]:
    """Let TorchRec's planner assign tables to ranks, as a worker lets it.

    Raises:
        OptionError: `per_table` names a table that is not there, or the planner finds no plan.
        FactoryError: a table has more rows than ids of 32 bits can tell.
    """
    module = _module(tables)
    # Options allow a worker as many devices as one machine has; ranks may be more.
    options = Sharding.model_construct(
        world_size=layout.ranks, type=layout.type, per_table=layout.per_table
    )
    with unchanged_process():
        _, plan = shard(module, find_collections(module), options, None, torch.device("cpu"))
    assigned = plan.plan if plan else {}
    return [
        Part(table=table, rank=piece.placement.rank(), rows=piece.shard_sizes[0])
        for table in tables
        for piece in assigned[table.key.collection][table.key.table].sharding_spec.shards
        if piece.shard_sizes[0]
    ]


def by_rank(
    parts: Sequence[Part], layout: Layout, request: Request, memory: int | None
) -> list[Rank]:
    """What every rank has to do for one request.

    Args:
        parts: as `lay_out` gives them.
        layout: of them.
        request: its size.
        memory: bytes that one rank has for tables; None for any number.
    """
    of_rank: list[list[Part]] = [[] for _ in range(layout.ranks)]
    for part in parts:
        of_rank[part.rank].append(part)
    return [
        _rank(number, number // layout.ranks_per_node, own, request, memory)
        for number, own in enumerate(of_rank)
    ]


def _rank(
    number: int, node: int, parts: Sequence[Part], request: Request, memory: int | None
) -> Rank:
    nbytes = sum(part.nbytes for part in parts)
    sent = [_travelling(own, request) for own in _together(parts)] if number else []
    return Rank(
        rank=number,
        node=node,
        tables=len(parts),
        nbytes=nbytes,
        missing=max(0, nbytes - memory) if memory is not None else 0,
        lookup_seconds=sum(part.seconds(request.rows) for part in parts),
        received=round(sum(received for received, _ in sent)),
        answered=round(sum(answered for _, answered in sent)),
    )


def _together(parts: Sequence[Part]) -> Iterable[list[Part]]:
    """What one rank looks up at once: tables of a collection that are sharded alike."""
    groups: dict[tuple[str, bool], list[Part]] = {}
    for part in parts:
        key = (part.table.key.collection, part.rows == part.table.rows)
        groups.setdefault(key, []).append(part)
    return groups.values()


def _travelling(parts: Sequence[Part], request: Request) -> tuple[float, float]:
    """Bytes to a rank, and from it, of what it looks up at once.

    Where all have one width, and that is a part of all, rows of empty lists do not travel, and of
    lists of one id no id of a feature does twice, nor its row: see the handler's `Compacting`.
    """
    rows = request.rows
    lists = sum(part.lists(rows) for part in parts)
    ids = sum(part.ids(rows) for part in parts)
    value = EXCHANGED_BYTES[request.exchange_dtype]
    if len({part.table.width for part in parts}) == 1 and lists >= LEAST_LISTS:
        full = sum(part.full(rows) for part in parts)
        if all(part.table.pooling_factor <= 1 for part in parts):
            once = sum(part.distinct(rows) for part in parts)
            if once <= MOST_KEPT * full:
                full = ids = once
        if full <= MOST_KEPT * lists:
            answered = full * parts[0].table.width * value
            return LENGTH_BYTES * lists + ID_BYTES * ids, answered
    answered = sum(part.lists(rows) * part.table.width * value for part in parts)
    return LENGTH_BYTES * lists + ID_BYTES * sum(part.ids(rows) for part in parts), answered


def imbalance(values: Sequence[float]) -> float:
    """How many times the mean the largest is; 1 of nothing."""
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0


def _module(tables: Sequence[Sizes]) -> torch.nn.Module:
    """Quantized collections at the paths that tables name, without rows."""
    root = torch.nn.Module()
    for path, own in _by_collection(tables):
        *outer, name = path.split(".")
        parent = root
        for part in outer:
            if part not in dict(parent.named_children()):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        configs = [
            EmbeddingBagConfig(
                name=table.key.table,
                num_embeddings=table.rows,
                embedding_dim=table.width,
                data_type=DATA_TYPES[table.dtype],
                feature_names=[f"{table.key.table}:{number}" for number in range(table.features)],
            )
            for table in own
        ]
        meta = torch.device("meta")
        parent.add_module(
            name, EmbeddingBagCollection(tables=configs, is_weighted=False, device=meta)
        )
    return root


def _by_collection(tables: Sequence[Sizes]) -> Iterator[tuple[str, list[Sizes]]]:
    for path in dict.fromkeys(table.key.collection for table in tables):
        yield path, [table for table in tables if table.key.collection == path]
