"""What people are shown of a delta."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from torchrec_archiver.report.words import plain
from torchrec_handler.archive.delta import read_delta, signature_of

LONGEST_NAME = 200


def show_delta(path: Path, *, as_json: bool) -> str:
    """A delta's head, and how many rows of each table and which weights it changes.

    Args:
        path: of the delta, which is read as a whole for its digest.
        as_json: whether to give one JSON document.

    Raises:
        DeltaError: it is damaged.
    """
    delta = read_delta(path)
    head = delta.head
    is_signed = signature_of(path).exists()
    if as_json:
        document = {
            **asdict(head),
            "signed": is_signed,
            "tables": [{**table.key._asdict(), "rows": len(table.ids)} for table in delta.tables],
            "dense": {name: list(value.shape) for name, value in delta.dense.items()},
            "outputs": len(delta.outputs or ()),
        }
        return json.dumps(document, indent=2)
    created = datetime.fromtimestamp(head.created, UTC).isoformat(" ", "milliseconds")
    generations = (
        f"{head.sequence}"
        if head.from_sequence == head.sequence
        else f"{head.from_sequence} to {head.sequence}"
    )
    lines = [
        f"{path.name}: {head.kind}, generation {generations}, {path.stat().st_size:,} bytes",
        f"of the archive {head.base[:16]}…, run {head.run}",
        f"follows {head.previous[:16]}…, is {head.digest[:16]}…",
        f"made {created}, {'signed' if is_signed else 'not signed'}",
    ]
    lines += [
        f"table {plain(table.key.table, LONGEST_NAME)} of "
        f"{plain(table.key.collection, LONGEST_NAME)}: {len(table.ids):,} rows"
        for table in delta.tables
    ]
    lines += [
        f"weight {plain(name, LONGEST_NAME)}: {list(value.shape)}"
        for name, value in delta.dense.items()
    ]
    if delta.outputs:
        lines.append(f"outputs of {len(delta.outputs)} samples")
    return "\n".join(lines)
