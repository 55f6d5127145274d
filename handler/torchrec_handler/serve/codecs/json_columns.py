"""JSON columns: TorchRec's input tensors by name, read straight into buffers.

{"float_features": [[...F numbers...], ...B rows...],
 "id_list_features.lengths": [...F*B...], "id_list_features.values": [...N...]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from torchrec_handler.archive import Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Limits
from torchrec_handler.serve.request import Columns

CONTENT_TYPE = "application/json"
BATCH_SIZE = "batch_size"

KEPT_PARSER_BYTES = 8 * 2**20
"""A parser keeps the memory of the largest body it read, so larger bodies get one of their own."""

SHOWN_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One array of the body."""

    is_integer: bool
    most: int
    """How many elements its outermost list may hold."""
    limit: str
    """The option that says so."""


class JsonColumns:
    """Decodes bodies of one model, encodes its answers."""

    def __init__(self, signature: Signature, limits: Limits) -> None:
        self._columns = _columns(signature, limits)
        self._parser = simdjson.Parser()

    def decode(self, body: bytes | bytearray) -> Columns:
        """Read a body.

        Raises:
            InvalidRequest: not JSON, not an object, an unknown name, or not an array of numbers.
            RequestTooLarge: an array is longer than the limits allow.
        """
        document = self._parse(body)
        if not isinstance(document, simdjson.Object):
            message = f"body: received {_shown(document)}, expected a JSON object of input arrays"
            raise InvalidRequest(message)
        arrays: dict[str, npt.NDArray[Any]] = {}
        batch_size: int | None = None
        for name in document:
            value = document[name]
            column = self._columns.get(name)
            if column is not None:
                arrays[name] = read_array(name, value, column)
            elif name == BATCH_SIZE:
                batch_size = read_batch_size(value)
            else:
                expected = ", ".join(self._columns)
                message = f"{name}: unknown input, expected {expected} or {BATCH_SIZE}"
                raise InvalidRequest(message)
        return Columns(arrays=arrays, batch_size=batch_size)

    def decode_arguments(self, body: bytes | bytearray) -> dict[str, Any]:
        """Read the keyword arguments of a method that takes its request as it is.

        Raises:
            InvalidRequest: not a JSON object.
        """
        document = self._parse(body)
        if not isinstance(document, simdjson.Object):
            message = f"body: received {_shown(document)}, expected a JSON object of arguments"
            raise InvalidRequest(message)
        arguments: dict[str, Any] = document.as_dict()
        return arguments

    def encode(self, result: Any) -> bytes:
        """Write one answer: tensors as lists, named as the model named them."""
        return orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)

    def _parse(self, body: bytes | bytearray) -> Any:
        parser = self._parser
        if len(body) > KEPT_PARSER_BYTES:
            parser = simdjson.Parser()
        try:
            return parser.parse(bytes(body))
        except UnicodeDecodeError as error:
            message = f"body: not valid UTF-8 ({error.reason})"
            raise InvalidRequest(message) from None
        except ValueError as error:
            message = f"body: not valid JSON ({error})"
            raise InvalidRequest(message) from None
        except RuntimeError as error:
            # The parser is still read from somewhere (or met a number beyond 64 bits).
            if "re-use" not in str(error):
                message = f"body: not valid JSON ({error})"
                raise InvalidRequest(message) from None
            self._parser = simdjson.Parser()
            return self._parse(body)


def read_array(name: str, value: Any, column: Column) -> npt.NDArray[Any]:
    """One array, as int64 or float64, with the shape its lists have.

    Raises:
        InvalidRequest: not an array, ragged, or an element is not a number of the right kind.
        RequestTooLarge: longer than the column may be.
    """
    if not isinstance(value, simdjson.Array):
        message = f"{name}: received {_shown(value)}, expected an array"
        raise InvalidRequest(message)
    if len(value) > column.most:
        message = (
            f"{name}: received {len(value)} elements, expected at most {column.most} "
            f"(limits.{column.limit})"
        )
        raise RequestTooLarge(message)
    try:
        buffer = value.as_buffer(of_type="i" if column.is_integer else "d")
    except (TypeError, ValueError):
        raise InvalidRequest(_explain(name, value, column)) from None
    flat = np.frombuffer(buffer, dtype=np.int64 if column.is_integer else np.float64)
    return flat.reshape(_shape(name, value, flat.size))


def read_batch_size(value: Any) -> int:
    """The optional row count.

    Raises:
        InvalidRequest: not a positive integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        message = f"{BATCH_SIZE}: received {_shown(value)}, expected a positive integer"
        raise InvalidRequest(message)
    return value


def _columns(signature: Signature, limits: Limits) -> Mapping[str, Column]:
    columns = {}
    rows, ids = limits.rows_per_request, limits.ids_per_request
    for entry in signature.inputs:
        if entry.type in ("dense", "embedding"):
            # Outermost are the rows of a dense input (or one row's features), and the features
            # of an embedding input.
            columns[entry.name] = Column(
                is_integer=False, most=max(rows, entry.num_features or 0), limit="rows_per_request"
            )
            continue
        most = rows * entry.num_features if entry.num_features else ids
        columns[f"{entry.name}.lengths"] = Column(
            is_integer=True, most=most, limit="rows_per_request"
        )
        columns[f"{entry.name}.values"] = Column(
            is_integer=True, most=ids, limit="ids_per_request"
        )
        if entry.type == "weighted_sparse":
            columns[f"{entry.name}.weights"] = Column(
                is_integer=False, most=ids, limit="ids_per_request"
            )
    return columns


def _shape(name: str, array: Any, size: int) -> tuple[int, ...]:
    shape = [len(array)]
    level = [array]
    while shape[-1] and isinstance(level[0][0], simdjson.Array):
        level = [inner for outer in level for inner in outer]
        lengths = set(map(_length, level))
        if len(lengths) > 1 or -1 in lengths:
            break
        shape.append(lengths.pop())
    if int(np.prod(shape)) != size:
        message = f"{name}: its lists have different lengths, expected rows of one length"
        raise InvalidRequest(message)
    return tuple(shape)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, simdjson.Array) else -1


def _explain(name: str, array: Any, column: Column) -> str:
    kind = "integers of at most 64 bits" if column.is_integer else "numbers"
    accepted = (int,) if column.is_integer else (int, float)
    pending = [(name, array.as_list())]
    while pending:
        where, values = pending.pop()
        for position, value in enumerate(values):
            if isinstance(value, list):
                pending.append((f"{where}[{position}]", value))
            elif isinstance(value, bool) or not isinstance(value, accepted) or abs(value) >= 2**63:
                return f"{where}[{position}]: received {_shown(value)}, expected {kind}"
    return f"{name}: expected {kind}"


def _shown(value: Any) -> str:
    if isinstance(value, simdjson.Object):
        return "an object"
    if isinstance(value, simdjson.Array):
        return "an array"
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    message = f"a method returned {type(value).__name__}, which JSON cannot hold"
    raise TypeError(message)
