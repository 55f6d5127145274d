"""Delta files, written; `read_delta`, `check_delta` and what they give are here, too.

A safetensors file that any tool reads: `tables/N/ids` and `tables/N/rows`, `dense/NAME`, and
`outputs/CALL/NAME/PART`; its metadata hold the head, as JSON under `delta`, and a digest of the
whole file under `sha256`.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from torchrec_handler.archive.delta_checks import check_delta, remaps_of
from torchrec_handler.archive.delta_parts import (
    DTYPES,
    KINDS,
    NO_DIGEST,
    ROLLBACK,
    SIGNED,
    SUFFIX,
    UPDATE,
    Delta,
    Head,
    Outputs,
    TableRows,
    check_head,
    list_deltas,
    name_of,
    refuse,
    sequence_of,
)
from torchrec_handler.archive.delta_read import (
    DIGEST,
    MOST_DENSE_BYTES,
    check_signed,
    read_delta,
    read_head,
    signature_of,
)
from torchrec_handler.archive.trust import sign

__all__ = [
    "KINDS",
    "MOST_DENSE_BYTES",
    "ROLLBACK",
    "SUFFIX",
    "UPDATE",
    "Delta",
    "Head",
    "Outputs",
    "TableRows",
    "check_delta",
    "check_new",
    "check_signed",
    "list_deltas",
    "name_of",
    "publish_delta",
    "read_delta",
    "read_head",
    "remaps_of",
    "sequence_of",
    "signature_of",
    "write_delta",
]


def write_delta(  # noqa: PLR0913  what a delta says of itself
    folder: Path,
    *,
    base: str,
    run: str,
    sequence: int,
    previous: str,
    tables: Sequence[TableRows] = (),
    dense: Mapping[str, torch.Tensor] | None = None,
    outputs: Outputs | None = None,
    kind: str = UPDATE,
    covered: tuple[str, ...] = (),
    created: float | None = None,
    private_key: Path | None = None,
    password: str | None = None,
) -> Path:
    """Put a delta into a folder, so that it is whole there at every moment, and durable.

    Args:
        folder: where deltas are published.
        base: see `Head`, as for what follows.
        run: as there.
        sequence: as there.
        previous: as there.
        tables: changed rows; a table without any is kept, as managed collision may need it.
        dense: changed weights, whole.
        outputs: what the archive's samples give then.
        kind: as in `Head`.
        covered: as there; it tells `from_sequence`.
        created: as there; now, if not given.
        private_key: a PEM file to sign it with.
        password: of that file.

    Returns:
        Its path.

    Raises:
        DeltaError: there is one of this name already, or it cannot be written.
        LoadError, ArchiveError: the key cannot be used.
    """
    head = Head(
        base=base,
        run=run,
        sequence=sequence,
        from_sequence=sequence - max(len(covered) - 1, 0),
        previous=previous,
        created=time.time() if created is None else created,
        kind=kind,
        sha256=NO_DIGEST,
        covered=covered,
    )
    check_head(head)
    path = folder / name_of(head)
    tensors: dict[str, torch.Tensor] = {}
    for number, table in enumerate(tables):
        tensors[f"tables/{number}/ids"] = torch.from_numpy(_own(table.ids))
        tensors[f"tables/{number}/rows"] = torch.from_numpy(_own(table.rows))
    for name, value in (dense or {}).items():
        tensors[f"dense/{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
    for call, named in enumerate(outputs or ()):
        for name, parts in named.items():
            for part, value in enumerate(parts):
                tensors[f"outputs/{call}/{name}/{part}"] = value.detach().clone(
                    memory_format=torch.contiguous_format
                )
    if odd := [name for name, value in tensors.items() if value.dtype not in DTYPES.values()]:
        refuse(path, f"{odd[0]}: a delta cannot hold {tensors[odd[0]].dtype}", "dense")
    document = {**asdict(head), "tables": [table.key._asdict() for table in tables]}
    del document["sha256"]  # it lies outside of it, where it is found to be zeroed
    metadata = {"delta": json.dumps(document), "sha256": head.sha256}
    check_new(path)
    # A name that is free: safetensors renames to it, and ext4 writes to the disk at once what takes
    # the place of another file, so that it would write the digest's pages twice.
    staged = folder / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        save_file(tensors, staged, metadata=metadata)
        text = _seal(staged)
        if private_key is not None:
            signed = signature_of(staged)
            signed.write_bytes(sign(text, private_key, password, name=SIGNED))
            _rename(signed, signature_of(path))
        _rename(staged, path)
    except OSError as error:
        refuse(path, f"cannot be written: {error.strerror}", "damaged")
    finally:
        staged.unlink(missing_ok=True)
    return path


def publish_delta(staged: Path, folder: Path) -> Path:
    """Rename a delta, with its signature if there is one, into a folder of the same file system.

    Returns:
        Its path there.

    Raises:
        DeltaError: there is one of this name already, or it cannot be renamed.
    """
    path = folder / staged.name
    check_new(path)
    try:
        if signature_of(staged).exists():  # first, as a server may read the delta at once
            _rename(signature_of(staged), signature_of(path))
        _rename(staged, path)
    except OSError as error:
        refuse(path, f"cannot be written: {error.strerror}", "damaged")
    return path


def check_new(path: Path) -> None:
    """See that nothing is in a delta's place.

    Raises:
        DeltaError: something is.
    """
    if path.exists():
        refuse(path, "is there already; each generation has one delta", "fork")


def _own(values: np.ndarray) -> np.ndarray:
    """Memory that torch takes: in one piece, and not of a file that is mapped read-only."""
    return np.require(values, requirements=("C", "W"))


def _seal(path: Path) -> bytes:
    """Put the digest of a file into it, and give its head."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest().encode()
        found = DIGEST.search(text)
        if found is None:
            message = f"{path}: safetensors wrote no digest"
            raise AssertionError(message)
        file.seek(8 + found.start(1))
        file.write(digest)
    return text[: found.start(1)] + digest + text[found.end(1) :]


def _rename(staged: Path, path: Path) -> None:
    """Rename a file once it is on the disk, and put the name there."""
    with staged.open("rb") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    staged.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
