"""The edge: columns in, a request that the model can take out. Vectorised; nothing loops over rows.

The rules are TorchRec's Validation.cpp (lengths not negative, their sum the number of ids) and
those that keep a lookup inside its table.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Options
from torchrec_handler.serve.request import Columns, Floats, Sparse, ValidRequest

INT32_ROWS = 2**31


class Validator:
    """Checks requests of one model."""

    def __init__(self, signature: Signature, options: Options) -> None:
        self._inputs = signature.inputs
        self._limits = options.limits
        self._out_of_range_ids = options.out_of_range_ids
        self._table_rows = {
            entry.name: np.array([rows or INT32_ROWS for rows in entry.rows], dtype=np.int64)
            for entry in signature.inputs
        }

    def __call__(self, columns: Columns) -> ValidRequest:
        """Check one request.

        Raises:
            InvalidRequest: names the input, where in it, what was received and what is expected.
            RequestTooLarge: more rows or ids than the limits.
        """
        blocks: dict[str, npt.NDArray[Any]] = {}
        rows = columns.batch_size or 0
        for entry in self._inputs:
            part = "" if entry.type in ("dense", "embedding") else ".lengths"
            array = _column(columns, entry.name + part)
            block = _block(entry, array, rows)
            blocks[entry.name] = block
            if columns.batch_size is None:
                rows = max(rows, _rows(entry, block) or 0)
        if rows == 0:
            message = (
                f"{self._inputs[0].name}: holds no rows, expected at least one "
                "(where no input tells the rows, give batch_size)"
            )
            raise InvalidRequest(message)
        if rows > self._limits.rows_per_request:
            message = (
                f"received {rows} rows, expected at most {self._limits.rows_per_request} "
                "(limits.rows_per_request)"
            )
            raise RequestTooLarge(message)
        inputs = {
            entry.name: self._input(entry, blocks[entry.name], columns, rows)
            for entry in self._inputs
        }
        return ValidRequest(rows=rows, inputs=inputs)

    def _input(
        self, entry: InputSignature, block: npt.NDArray[Any], columns: Columns, rows: int
    ) -> Floats | Sparse:
        if entry.type not in ("dense", "embedding"):
            return self._sparse(entry, block, columns, rows)
        floats = _finite(entry.name, block)
        if entry.type == "embedding":
            floats = floats.transpose(1, 0, 2)
        if floats.shape[0] == rows:
            return np.ascontiguousarray(floats)
        if floats.shape[0] == 1:
            return np.repeat(floats, rows, axis=0)
        message = f"{entry.name}: received {floats.shape[0]} rows, expected {rows} (or 1 for all)"
        raise InvalidRequest(message)

    def _sparse(
        self, entry: InputSignature, lengths: npt.NDArray[Any], columns: Columns, rows: int
    ) -> Sparse:
        where = f"{entry.name}.lengths"
        features = entry.num_features or max(1, lengths.size // rows)
        if lengths.size not in (features * rows, features):
            message = (
                f"{where}: received {lengths.size} lengths, expected {features} features x "
                f"{rows} rows = {features * rows}"
            )
            raise InvalidRequest(message)
        flat = lengths.reshape(-1)
        if flat.size and flat.min() < 0:
            position = int(flat.argmin())
            message = f"{where}[{position}]: received {flat[position]}, expected 0 or more"
            raise InvalidRequest(message)
        values = _column(columns, f"{entry.name}.values").reshape(-1)
        if values.size > self._limits.ids_per_request:
            message = (
                f"{entry.name}.values: received {values.size} ids, expected at most "
                f"{self._limits.ids_per_request} (limits.ids_per_request)"
            )
            raise RequestTooLarge(message)
        if flat.size and flat.max() > self._limits.ids_per_request:
            position = int(flat.argmax())
            message = (
                f"{where}[{position}]: received {flat[position]}, expected at most "
                f"{self._limits.ids_per_request} (limits.ids_per_request)"
            )
            raise RequestTooLarge(message)
        total = int(flat.sum(dtype=np.int64))
        if total != values.size:
            message = (
                f"{entry.name}.values: received {values.size} ids, expected {total}, "
                f"the sum of {where}"
            )
            raise InvalidRequest(message)
        weights = None
        if entry.type == "weighted_sparse":
            weights = _finite(
                f"{entry.name}.weights", _column(columns, f"{entry.name}.weights").reshape(-1)
            )
            if weights.size != total:
                message = (
                    f"{entry.name}.weights: received {weights.size} weights, expected {total}, "
                    f"one for each of {entry.name}.values"
                )
                raise InvalidRequest(message)
        given = lengths.size // features
        by_feature = flat.reshape(features, given)
        values = self._in_range(entry, values, by_feature)
        sparse = Sparse(
            lengths=by_feature.astype(np.int32),
            values=values.astype(np.int32),
            weights=weights,
        )
        if given == rows:
            return sparse
        if total * rows > self._limits.ids_per_request:
            message = (
                f"{entry.name}: {total} ids shared by {rows} rows are {total * rows}, expected at "
                f"most {self._limits.ids_per_request} (limits.ids_per_request)"
            )
            raise RequestTooLarge(message)
        return repeat_row(sparse, rows)

    def _in_range(
        self, entry: InputSignature, values: npt.NDArray[Any], lengths: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        if values.size == 0:
            return values
        table_rows = self._table_rows[entry.name]
        least = int(table_rows.min()) if table_rows.size else INT32_ROWS
        if values.min() >= 0 and values.max() < least:
            return values
        limit = (
            np.repeat(table_rows, lengths.sum(axis=1))
            if table_rows.size
            else np.full(values.size, INT32_ROWS)
        )
        bad = (values < 0) | (values >= limit)
        if not bad.any():
            return values
        if self._out_of_range_ids == "zero":
            inside: npt.NDArray[Any] = np.where(bad, 0, values)
            return inside
        if self._out_of_range_ids == "modulo":
            remainder: npt.NDArray[Any] = values % limit
            return remainder
        position = int(bad.argmax())
        feature = int(np.searchsorted(np.cumsum(lengths.sum(axis=1)), position, side="right"))
        name = f" of feature {entry.features[feature]!r}" if entry.features else ""
        message = (
            f"{entry.name}.values[{position}]: received id {values[position]}{name}, "
            f"expected 0 to {limit[position] - 1}"
        )
        raise InvalidRequest(message)


def repeat_row(sparse: Sparse, rows: int) -> Sparse:
    """Give the one row of a sparse input to all rows of its request.

    Args:
        sparse: lengths [F, 1].
        rows: B

    Returns:
        Lengths [F, B]; the ids of each feature B times over.
    """
    lengths = np.repeat(sparse.lengths, rows, axis=1)
    ends = np.cumsum(sparse.lengths[:, 0])
    starts = np.repeat(ends - sparse.lengths[:, 0], rows)
    index = segments(starts, lengths.reshape(-1))
    return Sparse(
        lengths=lengths,
        values=sparse.values[index],
        weights=None if sparse.weights is None else sparse.weights[index],
    )


def segments(starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Positions of consecutive segments, one behind another.

    Args:
        starts: [S] where each segment begins in its source.
        lengths: [S] how long it is.

    Returns:
        [sum of lengths] positions in the source.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    positions = np.arange(total, dtype=np.int64)
    positions += np.repeat(starts - (ends - lengths), lengths)
    return positions


def _column(columns: Columns, name: str) -> npt.NDArray[Any]:
    array = columns.arrays.get(name)
    if array is None:
        given = ", ".join(columns.arrays) or "nothing"
        message = f"{name}: missing, received {given}"
        raise InvalidRequest(message)
    return array


def _block(entry: InputSignature, array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Shape an input's array: dense [B, F], embedding [F, B, D]; lengths stay as they are."""
    if entry.type == "dense":
        block = array.reshape(1, -1) if array.ndim == 1 else array
        features = entry.num_features or block.shape[-1]
        if block.ndim != 2 or block.shape[1] != features or block.size == 0:
            message = (
                f"{entry.name}: received shape {_shown(array.shape)}, expected "
                f"{rows or 'B'} rows x {entry.num_features or 'F'} features"
            )
            raise InvalidRequest(message)
        return block
    if entry.type == "embedding":
        features = entry.num_features or array.shape[0]
        width = entry.width or array.shape[-1]
        shape = array.shape
        if len(shape) != 3 or shape[0] != features or shape[2] != width or array.size == 0:
            message = (
                f"{entry.name}: received shape {_shown(shape)}, expected "
                f"{entry.num_features or 'F'} features x {rows or 'B'} rows x "
                f"{entry.width or 'D'} wide"
            )
            raise InvalidRequest(message)
    return array


def _rows(entry: InputSignature, block: npt.NDArray[Any]) -> int | None:
    if entry.type == "dense":
        return int(block.shape[0])
    if entry.type == "embedding":
        return int(block.shape[1])
    return block.size // entry.num_features if entry.num_features else None


def _finite(where: str, array: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    finite = np.isfinite(floats)
    if not finite.all():
        position = tuple(map(int, np.argwhere(~finite)[0]))
        index = "".join(f"[{part}]" for part in position)
        message = f"{where}{index}: received {array[position]}, expected a finite float32"
        raise InvalidRequest(message)
    return floats


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
