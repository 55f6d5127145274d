"""What does not fit, and what would help, each tried with the planner."""

from torchrec_archiver import fitting
from torchrec_archiver.planning import Layout, Request, by_rank, lay_out
from torchrec_archiver.sizes import Sizes, row_bytes
from torchrec_handler.archive.format import TableKey

TWO = Layout(nodes=2, ranks_per_node=1, type="table_wise", per_table={})


def tables(*rows: int, width: int = 64) -> list[Sizes]:
    return [
        Sizes(
            key=TableKey("a", f"t{number}"),
            rows=count,
            width=width,
            dtype="int8",
            row_bytes=row_bytes(width, "int8"),
            pooling_factor=1,
        )
        for number, count in enumerate(rows)
    ]


def helps(given: list[Sizes], layout: Layout, memory: int) -> tuple[str | None, list[str]]:
    parts = lay_out(given, layout)
    ranks = by_rank(parts, layout, Request(rows=1, exchange_dtype="float32"), memory)
    said = fitting.missing(ranks, parts, memory)
    return said, list(fitting.would_help(given, layout, memory)) if said else []


def test_what_fits_lacks_nothing() -> None:
    assert helps(tables(100, 100), TWO, 6800) == (None, [])


def test_a_table_that_is_too_large_for_any_rank() -> None:
    assert helps(tables(1000, 100), TWO, 40_000) == (
        (
            "memory: 1 of 2 ranks need more than the 40.0 kB of a rank; rank 0 lacks 28.0 kB, "
            "its largest table is t0 with 68.0 kB"
        ),
        [
            # 500 rows of it on each, and the other on one.
            *("--type row_wise (37.4 kB a rank at most)", "int4 tables (36.0 kB a rank at most)"),
            "--row-wise t0 and --nodes 3",
        ],
    )


def test_one_of_two_row_wise_is_enough_where_the_other_finds_room() -> None:
    _, found = helps(tables(1000, 100), TWO, 41_000)
    assert found[0] == "--row-wise t0"


def test_tables_that_are_too_many() -> None:
    said, found = helps(tables(*[100] * 5), TWO, 14_000)
    assert said
    assert found == ["int4 tables (10.8 kB a rank at most)", "--nodes 3"]


def test_many_large_tables_are_counted_and_ranks_without_end_are_not_tried() -> None:
    _, found = helps(tables(*[1000] * 6), TWO, 60_000)
    assert found[-1] == "row_wise for the 6 tables that are larger than a rank and --nodes 7"
    assert helps(tables(1000), TWO, 1)[1] == []


def test_what_cannot_be_packed_smaller_is_not_proposed() -> None:
    _, found = helps(tables(*[100] * 5, width=2), TWO, 1300)
    assert found == ["--nodes 3"]
