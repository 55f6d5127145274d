"""JSON bytes to a document whose number arrays are read straight into buffers.

simdjson parses; nothing becomes a Python object before a codec asks for it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.columns import Column

KEPT_PARSER_BYTES = 8 * 2**20
"""A parser keeps the memory of the largest body it read, so larger bodies get one of their own."""

SHOWN_CHARACTERS = 80


class JsonParser:
    """Parses bodies, one at a time."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def parse(self, body: bytes | bytearray) -> simdjson.Object:
        """Parse a body; the object is good until the next call.

        Raises:
            InvalidRequest: not JSON, or not an object.
        """
        document = self._parse(body)
        if not isinstance(document, simdjson.Object):
            message = f"body: received {shown(document)}, expected a JSON object"
            raise InvalidRequest(message)
        return document

    def _parse(self, body: bytes | bytearray) -> Any:
        parser = simdjson.Parser() if len(body) > KEPT_PARSER_BYTES else self._parser
        try:
            return parser.parse(bytes(body))
        except UnicodeDecodeError:
            message = "body: not valid UTF-8"
            raise InvalidRequest(message) from None
        except (ValueError, RuntimeError) as error:
            # It will not parse while an object of an earlier body is alive (in a traceback, say).
            if "re-use" in str(error):
                self._parser = simdjson.Parser()
                return self._parse(body)
            reason = str(error).partition(":")[2].strip().partition(". ")[0]
            message = f"body: not valid JSON ({reason or error})"
            raise InvalidRequest(message) from None


def read_array(name: str, value: Any, column: Column) -> npt.NDArray[Any]:
    """One array, as int64 or float64, with the shape its lists have.

    Raises:
        InvalidRequest: not an array, ragged, or an element is not a number of the right kind.
        RequestTooLarge: longer than the column may be.
    """
    if not isinstance(value, simdjson.Array):
        message = f"{name}: received {shown(value)}, expected an array"
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


def shown(value: Any) -> str:
    """A received value, short enough for a message."""
    if isinstance(value, simdjson.Object | dict):
        return "an object"
    if isinstance(value, simdjson.Array | list):
        return "an array"
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _shape(name: str, array: simdjson.Array, size: int) -> tuple[int, ...]:
    shape = [len(array)]
    level: list[Any] = [array]
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


def _explain(name: str, array: simdjson.Array, column: Column) -> str:
    kind = "integers of at most 64 bits" if column.is_integer else "numbers"
    accepted = (int,) if column.is_integer else (int, float)
    pending = [(name, array.as_list())]
    while pending:
        where, values = pending.pop()
        for position, value in enumerate(values):
            if isinstance(value, list):
                pending.append((f"{where}[{position}]", value))
            elif (
                isinstance(value, bool)
                or not isinstance(value, accepted)
                or (column.is_integer and abs(value) >= 2**63)
            ):
                return f"{where}[{position}]: received {shown(value)}, expected {kind}"
    return f"{name}: expected {kind}"
