"""The shards in the text of a plan."""

import pytest
from torch.distributed._shard.metadata import ShardMetadata
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
)

from torchrec_archiver.report.plan import Shard, shards
from torchrec_handler.archive.format import TableEntry, TableKey


def sharding(kind: str, *parts: tuple[list[int], list[int], str]) -> ParameterSharding:
    spec = EnumerableShardingSpec(
        [
            ShardMetadata(shard_offsets=offsets, shard_sizes=sizes, placement=device)
            for offsets, sizes, device in parts
        ]
    )
    return ParameterSharding(
        sharding_type=kind, compute_kernel="quant", ranks=[0], sharding_spec=spec
    )


PLAN = ShardingPlan(
    plan={
        "_module.user": EmbeddingModuleShardingPlan(
            {
                "t_user": sharding(
                    "row_wise",
                    ([0, 0], [25, 8], "rank:0/cpu"),
                    ([25, 0], [25, 8], "rank:1/cpu"),
                ),
                "t_age": sharding("table_wise", ([0, 0], [7, 4], "rank:1/cpu")),
            }
        ),
        "_module.movie": EmbeddingModuleShardingPlan(
            {
                "t_movie": sharding(
                    "column_wise",
                    ([0, 0], [40, 4], "rank:0/cpu"),
                    ([0, 4], [40, 4], "rank:1/cpu"),
                )
            }
        ),
    }
)
USER = TableKey("_module.user", "t_user")
AGE = TableKey("_module.user", "t_age")
MOVIE = TableKey("_module.movie", "t_movie")


def entry(key: TableKey, rows: int, width: int, dtype: str, row_bytes: int) -> TableEntry:
    return TableEntry(
        collection=key.collection,
        name=key.table,
        rows=rows,
        width=width,
        dtype=dtype,
        row_bytes=row_bytes,
        offset=0,
    )


TABLES = {USER: entry(USER, 50, 8, "int8", 12), MOVIE: entry(MOVIE, 40, 8, "int4", 8)}


def test_shards_are_those_that_torchrec_prints_by_device() -> None:
    assert shards(str(PLAN), TABLES) == [
        Shard("rank:0/cpu", USER, (0, 25), (0, 8), 25 * 12),
        Shard("rank:0/cpu", MOVIE, (0, 40), (0, 4), 40 * 6),
        Shard("rank:1/cpu", USER, (25, 25), (0, 8), 25 * 12),
        Shard("rank:1/cpu", AGE, (0, 7), (0, 4), None),
        Shard("rank:1/cpu", MOVIE, (0, 40), (4, 4), 40 * 6),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "table_wise",
        "a | b | c | d",
        "t | [0, 0] | [1] | cpu",
        f"t | [0, 0] | [1, {'9' * 5000}] | cpu",
        " | " * 100_000,
    ],
)
def test_a_text_of_another_form_has_none(text: str) -> None:
    assert shards(text, TABLES) == []
