"""What of a plan does not fit into memory, and what would make it fit, tried with the planner."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torchrec_archiver.planning import MOST_RANKS, Layout, Part, Rank, lay_out
from torchrec_archiver.report.words import counted, plain, size
from torchrec_archiver.sizes import Sizes

ROW_WISE: Literal["row_wise"] = "row_wise"
SMALLER: Mapping[str, int] = {"int8": 2, "int4": 4}
"""Data types to try -> the multiple that a width has to be of to be packed."""
MOST_NAMED = 5
"""Tables."""
MOST_TRIES = 12
"""Numbers of nodes."""
MORE = 1.15
"""From one try to the next."""


def missing(ranks: Sequence[Rank], parts: Sequence[Part], memory: int) -> str | None:
    """Which rank lacks how much, and its largest table; None where all fit."""
    short = [rank for rank in ranks if rank.missing]
    if not short:
        return None
    worst = max(short, key=lambda rank: rank.missing)
    largest = max((part for part in parts if part.rank == worst.rank), key=lambda one: one.nbytes)
    return (
        f"memory: {len(short):,} of {counted(len(ranks), 'rank')} need more than the "
        f"{size(memory)} of a rank; rank {worst.rank} lacks {size(worst.missing)}, "
        f"its largest table is {plain(largest.table.key.table)} with {size(largest.nbytes)}"
    )


def would_help(tables: Sequence[Sizes], layout: Layout, memory: int) -> Iterator[str]:
    """Changes with each of which alone everything fits.

    Args:
        tables: all.
        layout: with which they do not fit.
        memory: bytes that a rank has.
    """
    large = [
        table.key.table
        for table in tables
        if table.rows * table.row_bytes > memory
        and layout.per_table.get(table.key.table) != ROW_WISE
    ]
    some = replace(layout, per_table={**layout.per_table, **dict.fromkeys(large, ROW_WISE)})
    every = replace(layout, type=ROW_WISE, per_table={})
    spread = _spread(large) if layout.type != ROW_WISE else ""
    is_enough = bool(spread) and _most(tables, some) <= memory
    if is_enough:
        yield spread
    if layout.type != ROW_WISE and (most := _most(tables, every)) <= memory:
        yield f"--type row_wise ({size(most)} a rank at most)"
    for dtype, multiple in SMALLER.items():
        smaller = [_smaller(table, dtype, multiple) for table in tables]
        if smaller != list(tables) and (most := _most(smaller, layout)) <= memory:
            yield f"{dtype} tables ({size(most)} a rank at most)"
            break
    if not is_enough and (nodes := _enough(tables, some, memory)):
        yield f"{spread and f'{spread} and '}--nodes {nodes}"


def _spread(tables: Sequence[str]) -> str:
    if len(tables) > MOST_NAMED:
        return f"row_wise for the {len(tables):,} tables that are larger than a rank"
    return " ".join(f"--row-wise {plain(name)}" for name in tables)


def _smaller(table: Sizes, dtype: str, multiple: int) -> Sizes:
    stored = table.stored_as(dtype)
    return stored if table.width % multiple == 0 and stored.row_bytes < table.row_bytes else table


def _enough(tables: Sequence[Sizes], layout: Layout, memory: int) -> int | None:
    """How many nodes hold all; None where none of those that were tried does."""
    total = sum(table.rows * table.row_bytes for table in tables)
    nodes = max(layout.nodes + 1, -(-total // (memory * layout.ranks_per_node)))
    for _ in range(MOST_TRIES):
        if nodes * layout.ranks_per_node > MOST_RANKS:
            return None
        if _most(tables, replace(layout, nodes=nodes)) <= memory:
            return nodes
        nodes = max(nodes + 1, round(nodes * MORE))
    return None


def _most(tables: Sequence[Sizes], layout: Layout) -> int:
    """Bytes of the fullest rank."""
    held = [0] * layout.ranks
    for part in lay_out(tables, layout):
        held[part.rank] += part.nbytes
    return max(held)
