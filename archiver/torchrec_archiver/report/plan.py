"""The shards of a sharding plan, out of the text that TorchRec prints of one."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torchrec_handler.archive.format import ROW_BITS, SCALE_BIAS_BYTES, TableEntry, TableKey

MODULE = "module: "
PAIR = re.compile(r"\[(\d{1,18}), (\d{1,18})\]")


class Shard(NamedTuple):
    """A part of a table, and where it lies."""

    device: str
    key: TableKey
    rows: tuple[int, int]
    """The first one, and how many."""
    columns: tuple[int, int]
    """The first one, and how many."""
    nbytes: int | None
    """None for a table that the archive does not list."""


def shards(plan: str, tables: Mapping[TableKey, TableEntry]) -> list[Shard]:
    """All shards, by device; none of a text of another form.

    Args:
        plan: `str` of a `ShardingPlan`: by module a table of parameters, and one of their shards.
        tables: of the archive.
    """
    return sorted(_shards(plan, tables), key=lambda shard: shard.device)


def _shards(plan: str, tables: Mapping[TableKey, TableEntry]) -> Iterator[Shard]:
    module = ""
    for line in plan.splitlines():
        if line.startswith(MODULE):
            module = line.removeprefix(MODULE)
        cells = [cell.strip() for cell in line.split(" | ")]
        if len(cells) != 4:
            continue
        name, offsets, sizes, device = cells
        at, size = PAIR.fullmatch(offsets), PAIR.fullmatch(sizes)
        if not at or not size:
            continue
        key = TableKey(module, name)
        rows, columns = (int(at[1]), int(size[1])), (int(at[2]), int(size[2]))
        entry = tables.get(key)
        nbytes = rows[1] * _row_bytes(entry, columns[1]) if entry else None
        yield Shard(device=device, key=key, rows=rows, columns=columns, nbytes=nbytes)


def _row_bytes(entry: TableEntry, columns: int) -> int:
    """Each shard of columns has a scale and a bias of its own."""
    scale_bias = SCALE_BIAS_BYTES if entry.dtype.startswith("int") else 0
    return -(-columns * ROW_BITS[entry.dtype] // 8) + scale_bias
