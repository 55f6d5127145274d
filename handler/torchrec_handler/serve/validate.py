"""The edge: columns in, a request that the model can take out. Vectorised; nothing loops over rows.

The rules are TorchRec's Validation.cpp (lengths not negative, their sum the number of ids) and
those that keep a lookup inside its table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Options
from torchrec_handler.serve.request import Columns, Floats, Sparse, ValidRequest

INT32_IDS = 2**31
INT64_IDS = 2**63
"""How many ids there are below 0 and from 0 on, each."""

SPARSE = frozenset({"sparse", "weighted_sparse"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A request that keeps to the limits; what it holds is not checked yet."""

    columns: Columns
    rows: int
    """B"""
    ids: int
    """Of all sparse inputs, each as often as a row has it."""
    blocks: Mapping[str, npt.NDArray[Any]]
    """Each input's own array, see `_block`."""
    lengths: Mapping[str, npt.NDArray[Any]]
    """Sparse input -> [F, B], or [F, 1] for all rows."""


class Validator:
    """Checks requests of one model."""

    def __init__(self, signature: Signature, options: Options) -> None:
        self._inputs = signature.inputs
        self._limits = options.limits
        self._out_of_range_ids = options.out_of_range_ids
        self._last_ids = {
            entry.name: last_ids(entry) for entry in signature.inputs if entry.type in SPARSE
        }

    def __call__(self, columns: Columns) -> ValidRequest:
        """Check one request.

        Raises:
            InvalidRequest: names the input, where in it, what was received and what is expected.
            RequestTooLarge: more rows or ids than the limits.
        """
        return self.check(self.measure(columns))

    def measure(self, columns: Columns) -> Measured:
        """Tell what a request is going to hold, before anything of that size is made.

        Raises:
            InvalidRequest: it cannot be told.
            RequestTooLarge: more rows or ids than the limits.
        """
        blocks = {entry.name: _block(entry, columns) for entry in self._inputs}
        rows = columns.batch_size or self._observed_rows(blocks)
        if rows > self._limits.rows_per_request:
            raise RequestTooLarge(
                received=f"{rows} rows",
                expected=f"at most {self._limits.rows_per_request} (limits.rows_per_request)",
            )
        lengths = {
            entry.name: _lengths(entry, blocks[entry.name], rows)
            for entry in self._inputs
            if entry.type in SPARSE
        }
        ids = self._count_ids(columns, lengths, rows)
        return Measured(columns=columns, rows=rows, ids=ids, blocks=blocks, lengths=lengths)

    def check(self, measured: Measured) -> ValidRequest:
        """Check what a request holds.

        Raises:
            InvalidRequest, RequestTooLarge: as for a call.
        """
        rows = measured.rows
        inputs = {
            entry.name: self._sparse(entry, measured.lengths[entry.name], measured.columns, rows)
            if entry.type in SPARSE
            else _floats(entry, measured.blocks[entry.name], rows)
            for entry in self._inputs
        }
        return ValidRequest(rows=rows, inputs=inputs)

    def _observed_rows(self, blocks: Mapping[str, npt.NDArray[Any]]) -> int:
        """The most rows that an input has; those with fewer must have one, or are refused."""
        rows = max(_rows(entry, blocks[entry.name]) for entry in self._inputs)
        if rows:
            return rows
        for entry in self._inputs:
            received = blocks[entry.name].size
            if entry.num_features and received:
                raise InvalidRequest(
                    where=f"{entry.name}.lengths",
                    received=f"{received} lengths",
                    expected=f"{entry.num_features} features x B rows",
                )
        raise InvalidRequest(
            said="holds no rows",
            where=self._inputs[0].name,
            expected="at least one (where no input tells the rows, give batch_size)",
        )

    def _count_ids(
        self, columns: Columns, lengths: Mapping[str, npt.NDArray[Any]], rows: int
    ) -> int:
        """What the forward call is going to hold; lengths below 0 count for nothing here."""
        shares = {name: rows // array.shape[1] for name, array in lengths.items()}
        given = {name: _values(columns, name).size for name in lengths}
        for name, shared in columns.shared.items():
            given[name] += max(int(lengths[name][shared, 0].sum()), 0) * (rows - 1)
        total: int = sum(given[name] * shares[name] for name in given)
        if total > self._limits.ids_per_request:
            received = " and ".join(
                f"{given[name]} ids of {name}" + (f" x {share} rows" if share > 1 else "")
                for name, share in shares.items()
            )
            expected = f"at most {self._limits.ids_per_request} ids (limits.ids_per_request)"
            raise RequestTooLarge(received=received, expected=expected)
        return total

    def _sparse(
        self, entry: InputSignature, lengths: npt.NDArray[Any], columns: Columns, rows: int
    ) -> Sparse:
        where = f"{entry.name}.lengths"
        if lengths.size and lengths.min() < 0:
            position = int(lengths.argmin())
            raise InvalidRequest(
                where=f"{where}[{position}]",
                received=str(lengths.flat[position]),
                expected="0 or more",
            )
        values = _values(columns, entry.name)
        # No sum of what passes here overflows.
        if lengths.size and lengths.max() > self._limits.ids_per_request:
            position = int(lengths.argmax())
            raise RequestTooLarge(
                where=f"{where}[{position}]",
                received=str(lengths.flat[position]),
                expected=f"at most {self._limits.ids_per_request} (limits.ids_per_request)",
            )
        total = int(lengths.sum(dtype=np.int64))
        if total != values.size:
            raise InvalidRequest(
                where=f"{entry.name}.values",
                received=f"{values.size} ids",
                expected=f"{total}, the sum of {where}",
            )
        weights = None
        if entry.type == "weighted_sparse":
            weights = _finite(f"{entry.name}.weights", _column(columns, f"{entry.name}.weights"))
            if weights.shape != values.shape:
                raise InvalidRequest(
                    where=f"{entry.name}.weights",
                    received=f"{_shown(weights.shape)} weights",
                    expected=f"{total}, one for each of {entry.name}.values",
                )
        _check_longest(entry, lengths)
        dtype = np.int64 if entry.is_wide else np.int32
        values = self._in_range(entry, values, lengths).astype(dtype)
        shared = columns.shared.get(entry.name)
        if lengths.shape[1] < rows:
            lengths = np.pad(lengths, ((0, 0), (0, rows - 1)))
            shared = np.ones(len(lengths), np.bool_)
        if shared is not None:
            # Empty lists are alike in all rows anyway.
            shared = shared & (lengths[:, 0] > 0) if rows > 1 else None
        return Sparse(
            lengths=lengths.astype(np.int32),
            values=values,
            weights=weights,
            shared=shared if shared is not None and shared.any() else None,
        )

    def _in_range(
        self, entry: InputSignature, values: npt.NDArray[Any], lengths: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        last_ids = self._last_ids[entry.name]
        counts = lengths.sum(axis=1)
        last = np.repeat(last_ids, counts if last_ids.size == counts.size else values.size)
        bad = (values < 0) | (values > last)
        if not bad.any():
            return values
        if self._out_of_range_ids == "zero":
            inside: npt.NDArray[Any] = np.where(bad, 0, values)
            return inside
        if self._out_of_range_ids == "modulo":
            remainder = values % (np.minimum(last, INT64_IDS - 2) + 1)
            within: npt.NDArray[Any] = np.where(bad, remainder, values)
            return within
        position = int(bad.argmax())
        feature = int(np.searchsorted(np.cumsum(counts), position, side="right"))
        name = f" of feature {entry.features[feature]!r}" if entry.features else ""
        raise InvalidRequest(
            where=f"{entry.name}.values[{position}]",
            received=f"id {values[position]}{name}",
            expected=f"0 to {last[position]}",
        )


def last_ids(entry: InputSignature) -> npt.NDArray[np.int64]:
    """The largest id of each feature [F], or [1] where their number is not known."""
    any_id = (INT64_IDS if entry.is_wide else INT32_IDS) - 1
    known = entry.ids_below or (None,) * (entry.num_features or 1)
    return np.array([any_id if rows is None else rows - 1 for rows in known], dtype=np.int64)


def longest_lists(entry: InputSignature) -> npt.NDArray[np.int64] | None:
    """How many ids each feature may have in a row [F]; None where all may have any number."""
    if all(most is None for most in entry.longest):
        return None
    longest = [INT64_IDS - 1 if most is None else most for most in entry.longest]
    return np.array(longest, dtype=np.int64)


def _check_longest(entry: InputSignature, lengths: npt.NDArray[Any]) -> None:
    """See that every id has a weight for its position in its list; lengths are [F, B]."""
    longest = longest_lists(entry)
    if longest is None or not lengths.size:
        return
    bad = lengths > longest[:, None]
    if bad.any():
        feature, row = map(int, np.unravel_index(int(bad.argmax()), bad.shape))
        name = f" of feature {entry.features[feature]!r}" if entry.features else ""
        raise InvalidRequest(
            where=f"{entry.name}.lengths",
            received=f"{lengths[feature, row]} ids{name} in row {row}",
            expected=f"at most {longest[feature]}, the positions that have a weight",
        )


def _column(columns: Columns, name: str) -> npt.NDArray[Any]:
    array = columns.arrays.get(name)
    if array is None:
        given = ", ".join(columns.arrays) or "nothing"
        raise InvalidRequest(said="missing", where=name, received=given)
    return array


def _values(columns: Columns, name: str) -> npt.NDArray[Any]:
    values = _column(columns, f"{name}.values")
    if values.ndim != 1:
        raise InvalidRequest(
            where=f"{name}.values",
            received=f"shape {_shown(values.shape)}",
            expected="a flat list",
        )
    return values


def _block(entry: InputSignature, columns: Columns) -> npt.NDArray[Any]:
    """An input's own array: dense [B, F], embedding [F, B, D], else the lengths as they came."""
    if entry.type in SPARSE:
        return _column(columns, f"{entry.name}.lengths")
    array = _column(columns, entry.name)
    rows = str(columns.batch_size or "B")
    if entry.type == "dense":
        block = array.reshape(1, -1) if array.ndim == 1 else array
        expected = f"{rows} rows x {entry.num_features or 'F'} features"
        is_good = block.ndim == 2 and entry.num_features in (None, block.shape[1])
    else:
        block = array
        expected = f"{entry.num_features or 'F'} features x {rows} rows x {entry.width or 'D'} wide"
        is_good = (
            block.ndim == 3
            and entry.num_features in (None, block.shape[0])
            and entry.width in (None, block.shape[2])
        )
    if not is_good or block.size == 0:
        received = f"shape {_shown(array.shape)}"
        raise InvalidRequest(where=entry.name, received=received, expected=expected)
    return block


def _rows(entry: InputSignature, block: npt.NDArray[Any]) -> int:
    """How many rows a block shows, 0 for none."""
    if entry.type == "dense":
        return len(block)
    if block.ndim > 1:
        return int(block.shape[1])
    rows, rest = divmod(block.size, entry.num_features) if entry.num_features else (0, 0)
    return 0 if rest else rows


def _lengths(entry: InputSignature, array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Lengths as [F, B], or [F, 1] for all rows."""
    features = entry.num_features
    if array.ndim == 1:
        known = features or max(1, array.size // rows)
        if array.size in (known * rows, known):
            return array.reshape(known, -1)
        received = f"{array.size} lengths"
    else:
        if array.ndim == 2 and features in (None, array.shape[0]) and array.shape[1] in (rows, 1):
            return array
        received = f"shape {_shown(array.shape)}"
    expected = f"{features or 'F'} features x {rows} rows"
    if features:
        expected += f" = {features * rows}"
    raise InvalidRequest(where=f"{entry.name}.lengths", received=received, expected=expected)


def _floats(entry: InputSignature, block: npt.NDArray[Any], rows: int) -> Floats:
    """A dense input as [B, F], an embedding one as [B, F, D]; what is shared takes no memory."""
    floats = _finite(entry.name, block)
    if entry.type == "embedding":
        floats = floats.transpose(1, 0, 2)
    if floats.shape[0] == rows:
        return floats
    if floats.shape[0] == 1:
        return np.broadcast_to(floats, (rows, *floats.shape[1:]))
    raise InvalidRequest(
        where=entry.name,
        received=f"{floats.shape[0]} rows",
        expected=f"{rows} (or 1 for all)",
    )


def _finite(where: str, array: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    finite = np.isfinite(floats)
    if not finite.all():
        position = tuple(map(int, np.argwhere(~finite)[0]))
        index = "".join(f"[{part}]" for part in position)
        raise InvalidRequest(
            where=f"{where}{index}", received=str(array[position]), expected="a finite float32"
        )
    return floats


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
