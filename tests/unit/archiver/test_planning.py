"""What ranks have to do, by TorchRec's own planner; the figures by hand."""

from dataclasses import replace

import pytest

from torchrec_archiver.planning import Layout, Part, Request, by_rank, imbalance, lay_out
from torchrec_archiver.sizes import Sizes, row_bytes
from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import FactoryError


def table(name: str, rows: int, collection: str = "a.b", dtype: str = "int8") -> Sizes:
    return Sizes(
        key=TableKey(collection, name),
        rows=rows,
        width=64,
        dtype=dtype,
        row_bytes=row_bytes(64, dtype),
        features=2,
        pooling_factor=5,
    )


def layout(nodes: int, **given: object) -> Layout:
    settings = {"ranks_per_node": 1, "type": "table_wise", "per_table": {}} | given
    return Layout(nodes=nodes, **settings)  # type: ignore[arg-type]  # of a mapping


def test_tables_of_all_collections_go_whole_to_ranks() -> None:
    tables = [table("t", 100), table("t", 50, "a.c"), table("u", 30, dtype="int4")]
    parts = lay_out(tables, layout(3))
    assert [part.table for part in parts] == tables
    assert [part.rows for part in parts] == [100, 50, 30]
    assert sorted(part.rank for part in parts) == [0, 1, 2]


def test_rows_go_to_all_ranks_and_more_than_one_worker_may_drive() -> None:
    parts = lay_out([table("t", 2_000_000_000)], layout(100, type="row_wise"))
    assert [part.rank for part in parts] == list(range(100))
    assert {part.rows for part in parts} == {20_000_000}


def test_one_table_alone_is_row_wise_and_ranks_without_rows_have_no_part() -> None:
    tables = [table("t", 100), table("u", 3)]
    parts = lay_out(tables, layout(4, per_table={"u": "row_wise"}))
    assert [(part.table.key.table, part.rows) for part in parts] == [
        ("t", 100),
        *[("u", 1)] * 3,
    ]


def test_a_table_of_more_rows_than_ids_can_tell_is_refused() -> None:
    with pytest.raises(FactoryError, match="table 't': has 3000000000 rows, expected at most"):
        lay_out([table("t", 3_000_000_000)], layout(4))


def test_what_ranks_have_to_do() -> None:
    whole, half = table("t", 100), table("u", 50)
    parts = [
        Part(table=whole, rank=0, rows=100),
        Part(table=half, rank=2, rows=25),
        Part(table=half, rank=3, rows=25),
    ]
    request = Request(rows=10, exchange_dtype="float16")
    ranks = by_rank(parts, layout(2, ranks_per_node=2), request, memory=2000)
    assert [rank.node for rank in ranks] == [0, 0, 1, 1]
    assert [rank.tables for rank in ranks] == [1, 0, 1, 1]
    assert [rank.nbytes for rank in ranks] == [6800, 0, 1700, 1700]
    assert [rank.missing for rank in ranks] == [4800, 0, 0, 0]
    # 10 rows of 2 features are 20 lists of 4 bytes; half of 100 ids of 4; 20 rows of 64 float16.
    assert [rank.received for rank in ranks] == [0, 0, 20 * 4 + 50 * 4, 20 * 4 + 50 * 4]
    # Of lists of 5 ids 31 of 32 hold one.
    assert [rank.answered for rank in ranks] == [0, 0, 20 * 64 * 2, 20 * 64 * 2]
    lists, ids = 20 * (55e-9 + 64 * 0.4e-9), 50 * (35e-9 + 64 * 0.3e-9)
    assert ranks[2].lookup_seconds == pytest.approx(lists + ids)
    assert ranks[0].lookup_seconds == pytest.approx(lists + 2 * ids)
    assert ranks[1].lookup_seconds == 0


def test_rows_of_empty_lists_do_not_travel_where_they_are_many_and_of_one_width() -> None:
    rare = replace(table("t", 100), pooling_factor=0.5)
    parts = [Part(table=rare, rank=1, rows=100)]
    request = Request(rows=40, exchange_dtype="float32")
    assert by_rank(parts, layout(2), request, None)[1].answered == 40 * 64 * 4
    # Of lists that a message is as short of.
    few = Request(rows=10, exchange_dtype="float32")
    assert by_rank(parts, layout(2), few, None)[1].answered == 20 * 64 * 4
    # A fourth of the ids of lists of two: seven of sixteen hold one.
    parts = [Part(table=replace(rare, pooling_factor=2), rank=1, rows=25)]
    assert by_rank(parts, layout(2), request, None)[1].answered == 80 * 64 * 4 * 7 // 16
    parts = [
        Part(table=rare, rank=1, rows=100),
        Part(table=replace(table("u", 100), pooling_factor=0.5, width=32), rank=1, rows=100),
    ]
    assert by_rank(parts, layout(2), request, None)[1].answered == 80 * (64 + 32) * 4


def test_of_lists_of_one_id_each_id_of_a_feature_travels_once() -> None:
    """80 draws of ten rows: 40 of either feature, of which 1 - 0.9^40 are met."""
    request = Request(rows=40, exchange_dtype="float16")
    small = replace(table("t", 10), pooling_factor=1)
    (_, rank) = by_rank([Part(table=small, rank=1, rows=10)], layout(2), request, None)
    met = 2 * 10 * (1 - 0.9**40)
    assert rank.received == round(4 * 80 + 4 * met)
    assert rank.answered == round(met * 64 * 2)
    # Beside a large table with as many lists as to be worth it no more.
    large = replace(table("u", 10_000), pooling_factor=1, features=10)
    parts = [Part(table=one, rank=1, rows=one.rows) for one in (small, large)]
    (_, rank) = by_rank(parts, layout(2), request, None)
    assert rank.received == 4 * (80 + 400) * 2
    assert rank.answered == (80 + 400) * 64 * 2


def test_float32_is_twice_as_many_bytes_on_the_way() -> None:
    parts = [Part(table=table("t", 100), rank=1, rows=100)]
    sent = [
        by_rank(parts, layout(2), Request(rows=1, exchange_dtype=dtype), None)[1].answered
        for dtype in ("float32", "bfloat16")
    ]
    assert sent == [512, 256]


def test_imbalance_is_the_largest_over_the_mean() -> None:
    assert imbalance([3, 1]) == 1.5
    assert imbalance([0, 0]) == 1
