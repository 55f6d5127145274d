"""Deltas that follow one another from an archive on, and the state that they lead to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from torchrec_archiver.deltas.base import Base
from torchrec_handler.archive.delta import (
    Delta,
    Head,
    TableRows,
    check_delta,
    check_signed,
    list_deltas,
    read_delta,
    read_head,
)
from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.errors import BuildError


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What several deltas change together: of each row and each weight the newest."""

    tables: Mapping[TableKey, TableRows]
    dense: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class State:
    """An archive at one generation."""

    base: Base
    merged: Merged
    sequence: int
    digest: str
    """What the next delta calls `previous`."""
    run: str | None
    """Of the deltas; None without any."""

    @property
    def dense(self) -> dict[str, torch.Tensor]:
        """Every dense weight."""
        return {**self.base.dense, **self.merged.dense}

    def block(self, entry: TableEntry, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` of a table, [N, row_bytes] uint8; not to be written to."""
        held: np.ndarray = self.base.rows(entry)[start:end]
        changed = self.merged.tables.get(entry.key)
        if changed is not None:
            first, last = np.searchsorted(changed.ids, (start, end))
            if first < last:
                held = held.copy()
                held[changed.ids[first:last] - start] = changed.rows[first:last]
        return held

    def rows(self, entry: TableEntry, ids: np.ndarray) -> np.ndarray:
        """Rows of a table by their ids [K], ascending: [K, row_bytes] uint8."""
        held: np.ndarray = self.base.rows(entry)[ids]
        changed = self.merged.tables.get(entry.key)
        if changed is not None and len(changed.ids):
            at = np.minimum(np.searchsorted(changed.ids, ids), len(changed.ids) - 1)
            is_changed = changed.ids[at] == ids
            held[is_changed] = changed.rows[at[is_changed]]
        return held


def merge(deltas: Iterable[Delta]) -> Merged:
    """What deltas change together, given in their order."""
    parts: dict[TableKey, list[TableRows]] = {}
    dense: dict[str, torch.Tensor] = {}
    for delta in deltas:
        dense |= delta.dense
        for table in delta.tables:
            parts.setdefault(table.key, []).append(table)
    return Merged(tables={key: _merge_rows(several) for key, several in parts.items()}, dense=dense)


def _merge_rows(parts: Sequence[TableRows]) -> TableRows:
    if len(parts) == 1:
        return parts[0]
    ids = np.unique(np.concatenate([part.ids for part in parts]))
    rows = np.empty((len(ids), parts[0].rows.shape[1]), np.uint8)
    for part in parts:
        rows[np.searchsorted(ids, part.ids)] = part.rows
    return TableRows(key=parts[0].key, ids=ids, rows=rows)


def read_chain(
    folder: Path, base: Base, last: int | None = None, keys: Sequence[Path] = ()
) -> list[Delta]:
    """Read the deltas that lead from an archive to a generation, each checked.

    Args:
        folder: where they are published.
        base: the archive.
        last: the generation; None for the newest.
        keys: public keys, of which one has to have signed each; none where they need no signature.

    Raises:
        BuildError: the folder does not lead there.
        DeltaError: one is damaged, or not for this archive.
    """
    heads = {path: read_head(path) for path in list_deltas(folder)}
    if others := [path for path, head in heads.items() if head.base != base.digest]:
        message = f"{others[0]}: is a delta of another archive; each has a folder of its own"
        raise BuildError(message)
    wanted = max((head.sequence for head in heads.values()), default=0) if last is None else last
    chosen: list[Path] = []
    at, digest = 0, base.digest
    while at < wanted:
        found = [
            (head.sequence, path, head)
            for path, head in heads.items()
            if head.follows(at, digest) and head.sequence <= wanted
        ]
        if not found:
            raise BuildError(_broken(folder, at, wanted, heads.values()))
        at, path, head = max(found, key=lambda each: each[0])
        digest = head.digest
        chosen.append(path)
    deltas = []
    for path in chosen:
        if keys:
            check_signed(path, keys)
        delta = read_delta(path)
        check_delta(delta, base.index, base.dense)
        deltas.append(delta)
    return deltas


def _broken(folder: Path, at: int, wanted: int, heads: Iterable[Head]) -> str:
    if any(head.from_sequence <= at + 1 <= head.sequence <= wanted for head in heads):
        why = f"what follows generation {at} there belongs to another line of deltas"
    elif any(head.from_sequence <= at + 1 <= head.sequence for head in heads):
        why = f"generation {at} is followed by a squashed delta that leads further"
    else:
        why = f"generation {at + 1} is missing"
    return f"folder: {folder} does not lead to generation {wanted}: {why}"


def state_of(base: Base, deltas: Sequence[Delta]) -> State:
    """The state that deltas, which `read_chain` gave, lead to."""
    head = deltas[-1].head if deltas else None
    return State(
        base=base,
        merged=merge(deltas),
        sequence=head.sequence if head else 0,
        digest=head.digest if head else base.digest,
        run=head.run if head else None,
    )
