"""Holds an opened delta to the archive that it is for, before a byte of it is served."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from torchrec_handler.archive.delta_parts import Delta, TableRows, refuse, said
from torchrec_handler.archive.format import Index, TableEntry, TableKey

_REMAPPED = "._managed_collision_collection"
REMAPS = ("_mch_sorted_raw_ids", "_mch_remapped_ids_mapping", "_hash_zch_identities")
"""Buffers of managed collision that say which row an id has."""
_EXPONENTS: Mapping[str, tuple[type, int]] = {
    "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00),
}
"""Data type -> bits of its exponent, all set in what is not finite."""


def check_delta(delta: Delta, index: Index, dense: Mapping[str, torch.Tensor]) -> None:
    """See that every row and every weight has its place in an archive, and is finite.

    Args:
        delta: as `read_delta` gives it.
        index: of the archive.
        dense: the archive's own dense weights, as `dense.safetensors` holds them.

    Raises:
        DeltaError: one has not; the message names the first.
    """
    entries = {entry.key: entry for entry in index.tables}
    for table in delta.tables:
        entry = entries.get(table.key)
        if entry is None:
            refuse(
                delta.path,
                f"table {table.key.table!r} of {table.key.collection!r}: is none of the "
                f"archive's {len(entries)}",
                "table",
            )
        _check_rows(delta.path, table, entry)
    for name, value in delta.dense.items():
        _check_weight(delta.path, name, value, dense.get(name))
    _check_remaps(delta, entries, dense)
    if delta.outputs is not None and len(delta.outputs) != index.samples:
        refuse(
            delta.path,
            f"outputs: received those of {len(delta.outputs)} samples, expected {index.samples}",
            "samples",
        )


def _check_rows(path: Path, table: TableRows, entry: TableEntry) -> None:
    where, ids, rows = f"table {entry.name!r}", table.ids, table.rows
    if rows.shape[1] != entry.row_bytes:
        refuse(
            path,
            f"{where}: received rows of {rows.shape[1]} bytes, expected {entry.row_bytes}",
            "table",
        )
    if not len(ids):
        return
    steps = ids[1:] > ids[:-1]
    if not steps.all():
        at = int(steps.argmin())
        refuse(
            path,
            f"{where}: id {ids[at + 1]} stands behind {ids[at]}, expected ascending ids",
            "ids",
        )
    if ids[0] < 0 or ids[-1] >= entry.rows:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        refuse(
            path,
            f"{where}: received id {wrong}, expected 0 to {entry.rows - 1}; rows beyond an "
            "archive's take a new one",
            "ids",
        )
    is_integer = entry.dtype.startswith("int")
    words, exponent = _EXPONENTS["float16" if is_integer else entry.dtype]
    # Scale and bias of the integer types; all values of the others.
    held: np.ndarray = np.ascontiguousarray(rows[:, :4] if is_integer else rows).view(words)
    bad = (held & words(exponent)) == exponent
    if bad.any():
        row = int(bad.any(axis=1).argmax())
        what = "scale or bias that is" if is_integer else "values that are"
        refuse(path, f"{where}: row {ids[row]} holds {what} not finite", "values")


def _check_weight(path: Path, name: str, value: torch.Tensor, own: torch.Tensor | None) -> None:
    if own is None:
        refuse(path, f"dense: {said(name)} is none of the archive's weights", "dense")
    if value.dtype != own.dtype or value.shape != own.shape:
        refuse(
            path,
            f"dense: {name}: received {value.dtype} {tuple(value.shape)}, expected {own.dtype} "
            f"{tuple(own.shape)}",
            "dense",
        )
    # A mask of attention is infinite in the archive, too.
    if value.is_floating_point() and not value.isfinite().all() and own.isfinite().all():
        refuse(path, f"dense: {name} holds numbers that are not finite", "values")


def _check_remaps(
    delta: Delta, entries: Mapping[TableKey, TableEntry], dense: Mapping[str, torch.Tensor]
) -> None:
    """See that rows of managed collision come with what finds them: ids may have moved."""
    given = {table.key for table in delta.tables}
    for key in entries:
        needed = remaps_of(key, dense)
        held = [name for name in needed if name in delta.dense]
        if key in given and len(held) < len(needed):
            lacks = next(name for name in needed if name not in delta.dense)
            refuse(
                delta.path,
                f"table {key.table!r}: has rows without {lacks}, which says which ids have them",
                "dense",
            )
        if held and key not in given:
            refuse(
                delta.path,
                f"dense: {held[0]} comes without the table {key.table!r}, whose rows it gives ids",
                "dense",
            )


def remaps_of(key: TableKey, dense: Mapping[str, torch.Tensor]) -> list[str]:
    """The dense weights that say which ids have a table's rows; none without managed collision."""
    inside = f"{_REMAPPED}._managed_collision_modules.{key.table}."
    found = []
    for name in dense:
        module, is_remap, rest = f".{name}".rpartition(inside)
        is_inside = f".{key.collection}".endswith(f"{module}._embedding_module")
        if is_remap and rest in REMAPS and is_inside:
            found.append(name)
    return found
