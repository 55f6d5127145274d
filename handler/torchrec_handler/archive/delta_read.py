"""Opens delta files: safetensors, of which nothing is believed before it is checked."""

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from torchrec_handler.archive.delta_parts import (
    DTYPES,
    NO_DIGEST,
    SIGNATURE_SUFFIX,
    SIGNED,
    Delta,
    Head,
    Outputs,
    TableRows,
    check_head,
    name_of,
    refuse,
    said,
)
from torchrec_handler.archive.format import TableKey
from torchrec_handler.archive.trust import check_signature
from torchrec_handler.errors import ArchiveError

DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
MOST_DENSE_BYTES = 64 * 10**6
"""Of dense weights, and of outputs; a model with more gets a new archive."""
MOST_HEAD_BYTES = 64 * 10**6
_KNOWN = frozenset({"tables", "dense", "outputs"})


class _Stored(NamedTuple):
    """A tensor in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """In bytes from the start of the file."""
    end: int


class _Opened(NamedTuple):
    head: Head
    document: Mapping[str, Any]
    text: bytes
    """The JSON at the file's start."""


def read_head(path: Path) -> Head:
    """What a delta says of itself, nothing of it checked against its digest.

    Raises:
        DeltaError: it is no delta.
    """
    try:
        with _open(path) as file:
            return _read_head(path, file).head
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror}", "damaged")


def read_delta(path: Path) -> Delta:
    """Open a delta, and check that it is whole: its form and the digest over all of its bytes.

    Raises:
        DeltaError: it is damaged or no delta.
    """
    try:
        with _open(path) as file:
            opened = _read_head(path, file)
            digest = hashlib.sha256(len(opened.text).to_bytes(8, "little"))
            digest.update(DIGEST.sub(f'"sha256":"{NO_DIGEST}"'.encode(), opened.text))
            found = hashlib.file_digest(file, lambda: digest).hexdigest()
            if found != opened.head.sha256:
                refuse(
                    path,
                    f"its sha256 is {found[:16]}…, expected {opened.head.sha256[:16]}…; it was "
                    "altered, damaged or cut off, make or copy it again",
                    "damaged",
                )
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read: {error}", "damaged")
    try:
        stored = _stored(path, opened, len(mapped))
        tables = _tables(path, opened.document, stored, mapped)
        dense = _tensors(path, stored, "dense/", mapped)
        outputs = _outputs(_tensors(path, stored, "outputs/", mapped))
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        refuse(path, f"its tensors cannot be read ({error}); make it again", "damaged")
    if unknown := [name for name in stored if name.split("/")[0] not in _KNOWN]:
        refuse(path, f"holds {said(unknown[0])}, which is no part of a delta", "damaged")
    return Delta(path=path, head=opened.head, tables=tables, dense=dense, outputs=outputs)


def check_signed(path: Path, keys: Sequence[Path]) -> Path:
    """Find the trusted key that signed a delta; by its digest that is over all of the file.

    Raises:
        LoadError: model-signing is not installed.
        DeltaError: it has no signature, or none of the keys made it.
    """
    signature = signature_of(path)
    try:
        with _open(path) as file:
            signed = _read_head(path, file).text
        return check_signature(signed, signature.read_bytes(), keys, name=SIGNED)
    except FileNotFoundError:
        refuse(path, f"{signature.name} is missing, and this server trusts keys", "signature")
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror}", "signature")
    except ArchiveError as error:
        refuse(path, error.sentence, "signature")


def signature_of(path: Path) -> Path:
    """Where a delta's signature lies."""
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def _open(path: Path) -> Any:
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        refuse(path, "is no file", "damaged")
    return path.open("rb")


def _read_head(path: Path, file: Any) -> _Opened:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MOST_HEAD_BYTES, os.fstat(file.fileno()).st_size - 8):
        refuse(path, "is no delta, or cut off; make or copy it again", "damaged")
    text = file.read(length)
    digests = DIGEST.findall(text)
    try:
        document = json.loads(text)
        told = json.loads(document["__metadata__"]["delta"])
        if len(digests) != 1 or not isinstance(told, dict):
            refuse(path, f"its head has {len(digests)} digests, expected one", "damaged")
        known = {known.name for known in fields(Head)}
        values = {name: value for name, value in told.items() if name in known}
        values |= {"sha256": digests[0].decode(), "covered": tuple(values["covered"])}
        head = Head(**values)
        check_head(head)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        refuse(path, f"its head cannot be read ({said(str(error))}); make it again", "damaged")
    if path.name != name_of(head):
        refuse(path, f"its head says that it is {name_of(head)}", "damaged")
    return _Opened(head, {**document, "delta": told}, text)


def _stored(path: Path, opened: _Opened, size: int) -> dict[str, _Stored]:
    """Where each tensor lies, one behind another up to the file's end."""
    document, first = opened.document, 8 + len(opened.text)
    stored: dict[str, _Stored] = {}
    for name, entry in document.items():
        if name in {"__metadata__", "delta"}:
            continue
        start, end = (first + int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(length) for length in entry["shape"])
        known = _Stored(str(entry["dtype"]), shape, start, end)
        if min(shape, default=0) < 0 or math.prod(shape) * DTYPES[known.dtype].itemsize != (
            end - start
        ):
            refuse(path, f"{said(name)}: its shape is not its size", "damaged")
        stored[name] = known
    at = first
    for known in sorted(stored.values(), key=lambda known: (known.start, known.end)):
        if known.start != at:
            refuse(path, "its tensors do not lie one behind another", "damaged")
        at = known.end
    if at != size:
        refuse(path, f"is {size} bytes long, expected {at}", "damaged")
    return stored


def _tables(
    path: Path, document: Mapping[str, Any], stored: Mapping[str, _Stored], mapped: mmap.mmap
) -> tuple[TableRows, ...]:
    tables: dict[TableKey, TableRows] = {}
    named = document["delta"]["tables"]
    for number, entry in enumerate(named):
        key = TableKey(str(entry["collection"]), str(entry["table"]))
        if key in tables:
            refuse(path, f"table {key.table!r} of {key.collection!r}: is there twice", "damaged")
        ids, rows = stored[f"tables/{number}/ids"], stored[f"tables/{number}/rows"]
        is_right = (ids.dtype, len(ids.shape), rows.dtype, len(rows.shape)) == ("I64", 1, "U8", 2)
        if not is_right or ids.shape[0] != rows.shape[0]:
            refuse(
                path,
                f"table {key.table!r}: received ids {ids.dtype} {ids.shape} and rows {rows.dtype} "
                f"{rows.shape}, expected I64 (K,) and U8 (K, row_bytes)",
                "damaged",
            )
        tables[key] = TableRows(
            key=key, ids=_array(mapped, ids, np.int64), rows=_array(mapped, rows, np.uint8)
        )
    if 2 * len(named) != sum(name.startswith("tables/") for name in stored):
        refuse(path, "holds rows of a table that it does not name", "damaged")
    return tuple(tables.values())


def _array(mapped: mmap.mmap, stored: _Stored, dtype: type) -> np.ndarray:
    count = math.prod(stored.shape)
    if not count:
        return np.empty(stored.shape, dtype)
    return np.frombuffer(mapped, dtype, count, stored.start).reshape(stored.shape)


def _tensors(
    path: Path, stored: Mapping[str, _Stored], prefix: str, mapped: mmap.mmap
) -> dict[str, torch.Tensor]:
    """Copies, without the prefix."""
    chosen = {name: known for name, known in stored.items() if name.startswith(prefix)}
    size = sum(known.end - known.start for known in chosen.values())
    if size > MOST_DENSE_BYTES:
        refuse(
            path,
            f"{prefix[:-1]}: takes {size / 1e6:,.0f} MB, expected at most "
            f"{MOST_DENSE_BYTES / 1e6:,.0f} MB; build a new archive",
            "dense",
        )
    tensors = {}
    for name, known in chosen.items():
        dtype, content = DTYPES[known.dtype], bytearray(mapped[known.start : known.end])
        value = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensors[name.removeprefix(prefix)] = value.reshape(known.shape)
    return tensors


def _outputs(tensors: Mapping[str, torch.Tensor]) -> Outputs | None:
    calls: dict[int, dict[str, dict[int, torch.Tensor]]] = {}
    for name, value in tensors.items():
        call, _, rest = name.partition("/")
        output, _, part = rest.rpartition("/")
        calls.setdefault(int(call), {}).setdefault(output, {})[int(part)] = value
    if sorted(calls) != list(range(len(calls))):
        message = f"outputs of the calls {sorted(calls)}"
        raise ValueError(message)
    return (
        tuple(
            {
                name: tuple(parts[part] for part in sorted(parts))
                for name, parts in calls[call].items()
            }
            for call in sorted(calls)
        )
        or None
    )
