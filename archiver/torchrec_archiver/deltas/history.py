"""Deltas made of deltas: several as one, and one that takes others back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torchrec_archiver.deltas.answers import samples_of
from torchrec_archiver.deltas.base import Base
from torchrec_archiver.deltas.chain import merge, read_chain, state_of
from torchrec_archiver.deltas.writing import UNSIGNED, Piece, Signer, publish
from torchrec_handler.archive.delta import (
    ROLLBACK,
    Head,
    TableRows,
    list_deltas,
    read_delta,
    read_head,
    signature_of,
)
from torchrec_handler.errors import BuildError


def squash(  # noqa: PLR0913  the command line's options
    base: Base,
    folder: Path,
    *,
    first: int = 1,
    last: int | None = None,
    keys: Sequence[Path] = (),
    signer: Signer = UNSIGNED,
) -> Path:
    """Publish one delta that stands for several, which may be removed then.

    Args:
        base: the archive.
        folder: where deltas are published.
        first: the first generation that it covers.
        last: the last one; None for the newest.
        keys: public keys, of which one has to have signed them.
        signer: who signs it.

    Raises:
        BuildError: there are not two deltas of these generations.
        DeltaError: one is damaged, or there is one that covers them.
    """
    chain = read_chain(folder, base, last, keys)
    before = [delta for delta in chain if delta.head.sequence < first]
    inside = chain[len(before) :]
    if not inside or inside[0].head.from_sequence != first or len(inside) < 2:
        held = ", ".join(_named(delta.head) for delta in inside) or "none"
        message = (
            f"squash: received generations {first} to {last or 'the newest'}, expected two deltas "
            f"of {folder} or more, the first of which begins with {first}; they are {held}"
        )
        raise BuildError(message)
    merged = merge(inside)
    covered = tuple(
        digest for delta in inside for digest in delta.head.covered or (delta.head.sha256,)
    )
    piece = Piece(
        tables=list(merged.tables.values()), dense=merged.dense, outputs=inside[-1].outputs
    )
    (path,) = publish(
        folder,
        state_of(base, before),
        [piece],
        kind=inside[-1].head.kind,
        created=inside[-1].head.created,
        covered=covered,
        run=inside[-1].head.run,
        signer=signer,
    )
    return path


def rollback(
    base: Base,
    folder: Path,
    to: int,
    *,
    keys: Sequence[Path] = (),
    signer: Signer = UNSIGNED,
) -> Path:
    """Publish a new generation that is what an earlier one was.

    Of every row and weight that was touched since, it holds what was there then; of the samples
    what they gave then, as far as the deltas say it.

    Args:
        base: the archive.
        folder: where deltas are published.
        to: the earlier generation; 0 is the archive.
        keys: public keys, of which one has to have signed the deltas.
        signer: who signs it.

    Raises:
        BuildError: the folder does not lead to that generation, or it is the newest.
        DeltaError: a delta is damaged.
    """
    chain = read_chain(folder, base, keys=keys)
    now = state_of(base, chain)
    if not 0 <= to < now.sequence:
        message = (
            f"rollback: received generation {to}, expected one before the newest in {folder}, "
            f"which is {now.sequence}"
        )
        raise BuildError(message)
    before = read_chain(folder, base, to, keys)
    then = state_of(base, before)
    archived = tuple(sample.outputs for sample in samples_of(then)) or None
    touched = merge(delta for delta in chain if delta.head.sequence > to)
    entries = base.entries
    tables = [
        TableRows(key=key, ids=np.array(table.ids), rows=then.rows(entries[key], table.ids))
        for key, table in touched.tables.items()
    ]
    dense = {name: then.dense[name] for name in touched.dense}
    piece = Piece(tables=tables, dense=dense, outputs=before[-1].outputs if before else archived)
    (path,) = publish(folder, now, [piece], kind=ROLLBACK, signer=signer)
    return path


def _named(head: Head) -> str:
    one = f"{head.sequence}"
    return one if head.from_sequence == head.sequence else f"{head.from_sequence} to {one}"


def remove_covered(squashed: Path) -> int:
    """Remove the deltas of a folder that a squashed one stands for, and say how many.

    Raises:
        DeltaError: it is damaged.
    """
    head = read_delta(squashed).head
    removed = 0
    for path in list_deltas(squashed.parent):
        other = read_head(path)
        inside = head.from_sequence <= other.from_sequence and other.sequence <= head.sequence
        if path != squashed and inside and head.digest_at(other.sequence) == other.digest:
            path.unlink()
            signature_of(path).unlink(missing_ok=True)
            removed += 1
    return removed
