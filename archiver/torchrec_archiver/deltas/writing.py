"""Deltas written, checked as a server checks them, and only then put into their folder."""

import fcntl
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from torchrec_archiver.deltas.answers import Answers
from torchrec_archiver.deltas.chain import State
from torchrec_archiver.locked import locked_folder
from torchrec_handler.archive.delta import (
    UPDATE,
    Delta,
    Outputs,
    TableRows,
    check_delta,
    check_new,
    publish_delta,
    read_delta,
    remaps_of,
    write_delta,
)
from torchrec_handler.errors import BuildError

PREFIX = ".torchrec-deltas-"


class Signer(NamedTuple):
    """Who signs."""

    private_key: Path | None = None
    """A PEM file; None to sign nothing."""
    password: str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one delta changes."""

    tables: Sequence[TableRows] = ()
    dense: Mapping[str, torch.Tensor] = field(default_factory=dict)
    outputs: Outputs | None = None


UNSIGNED = Signer()


def split(
    blocks: Iterable[TableRows],
    dense: Mapping[str, torch.Tensor],
    state: State,
    max_rows: int | None,
) -> Iterator[Piece]:
    """Share changes out among generations; none where nothing has changed.

    Dense weights are in the last one, and so is managed collision with all of its rows: which rows
    ids have changes in one step.

    Args:
        blocks: changed rows, of each table in ascending order.
        dense: changed weights.
        state: what is changed.
        max_rows: of each; None to have one of any size.
    """
    managed = {key for key in state.base.entries if remaps_of(key, state.base.dense)}
    last: list[TableRows] = []
    pending: list[TableRows] = []
    count = 0
    for block in blocks:
        if block.key in managed:
            last.append(block)
            continue
        left = block
        while max_rows is not None and count + len(left.ids) > max_rows:
            room = max_rows - count
            yield Piece(tables=_joined([*pending, _part(left, 0, room)]))
            left, pending, count = _part(left, room, len(left.ids)), [], 0
        pending.append(left)
        count += len(left.ids)
    tables = _joined([*pending, *last])
    given = dict(dense)
    changed = {table.key for table in tables if len(table.ids)}
    named = {table.key for table in tables}
    for key in managed:
        remaps = remaps_of(key, state.base.dense)
        if key in changed:
            given |= {name: state.dense[name] for name in remaps if name not in given}
        elif not given.keys().isdisjoint(remaps):
            given |= {name: state.dense[name] for name in remaps if name not in given}
            if key not in named:
                row_bytes = state.base.entries[key].row_bytes
                nothing = np.empty((0, row_bytes), np.uint8)
                tables.append(TableRows(key=key, ids=np.empty(0, np.int64), rows=nothing))
    if given or changed:
        yield Piece(tables=tables, dense=given)


def publish(  # noqa: PLR0913
    folder: Path,
    state: State,
    pieces: Iterable[Piece],
    *,
    kind: str = UPDATE,
    created: float | None = None,
    covered: tuple[str, ...] = (),
    run: str | None = None,
    signer: Signer = UNSIGNED,
    answers: Answers | None = None,
) -> list[Path]:
    """Write a delta of each piece, one generation behind another, and publish them together.

    None is published before all are written and checked.

    Args:
        folder: where deltas are published.
        state: what the first follows.
        pieces: what they change.
        kind: of all.
        created: when that was so; now, if not given.
        covered: of a squashed one, see `Head`.
        run: that of the state, or a new one, if not given.
        signer: who signs them.
        answers: gives their outputs, in the place of the pieces'.

    Raises:
        DeltaError: a server would refuse one; or there is another of its generation.
        LoadError: it would, for what samples give then.
        BuildError: they cannot be written.
    """
    if not folder.is_dir():
        message = f"folder: {folder} is not a folder; make it first"
        raise BuildError(message)
    sequence, previous = state.sequence, state.digest
    run = run or state.run or str(uuid.uuid4())
    when = time.time() if created is None else created
    staged: list[Delta] = []
    with locked_folder(folder, PREFIX) as staging:
        for piece in pieces:
            outputs = piece.outputs
            if answers is not None:
                tables = [table for delta in staged for table in delta.tables]
                dense = {name: one for delta in staged for name, one in delta.dense.items()}
                outputs = answers([*tables, *piece.tables], {**dense, **piece.dense})
            sequence += max(len(covered), 1)
            path = write_delta(
                staging,
                base=state.base.digest,
                run=run,
                sequence=sequence,
                previous=previous,
                tables=piece.tables,
                dense=piece.dense,
                outputs=outputs,
                kind=kind,
                covered=covered,
                created=when,
                private_key=signer.private_key,
                password=signer.password,
            )
            delta = read_delta(path)
            check_delta(delta, state.base.index, state.base.dense)
            previous = delta.head.digest
            staged.append(delta)
        return put([delta.path for delta in staged], folder)


def put(staged: Sequence[Path], folder: Path) -> list[Path]:
    """Publish deltas that lie in a folder inside of the one that they are published in.

    One maker at a time, so that none takes another one's place between a look and a rename.

    Returns:
        Their paths there.

    Raises:
        DeltaError: there is another of one of their generations; none is published then.
    """
    entrance = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(entrance, fcntl.LOCK_EX)
        for path in staged:
            check_new(folder / path.name)
        return [publish_delta(path, folder) for path in staged]
    finally:
        os.close(entrance)


def _part(table: TableRows, start: int, end: int) -> TableRows:
    return TableRows(key=table.key, ids=table.ids[start:end], rows=table.rows[start:end])


def _joined(parts: Sequence[TableRows]) -> list[TableRows]:
    """One for each table."""
    by_key: dict[tuple[str, str], list[TableRows]] = {}
    for part in parts:
        if len(part.ids):
            by_key.setdefault(part.key, []).append(part)
    return [
        TableRows(
            key=several[0].key,
            ids=np.concatenate([part.ids for part in several]),
            rows=np.concatenate([part.rows for part in several]),
        )
        for several in by_key.values()
    ]
