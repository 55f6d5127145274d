"""JSON bytes to a document whose number arrays are read straight into buffers.

simdjson parses; nothing becomes a Python object before a codec asks for it.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.columns import Column

SMALL_BYTES = 2**18
"""No body of so many takes more than 56 MB, whatever it holds."""

KEPT_PARSER_BYTES = 8 * 2**20
"""A parser keeps the memory of the largest body it read, so larger bodies get one of their own."""

SHOWN_CHARACTERS = 80

MOST_COMMAS = 2**24 - 3
"""simdjson counts an array in 24 bits, and pysimdjson writes beyond a list that it made by a
count that was cut off. A body with fewer commas has no such array."""

PARSED_BYTES = 24
"""Of simdjson's own memory, for a number and its comma: two words and two positions."""

OBJECT_BYTES: Mapping[bytes, int] = {b"[": 88, b"{": 240, b":": 48, b",": 8}
"""Of Python's memory for what each character begins: lists, dicts, and places in them."""

STRING_BYTES = 56
"""Of a string beside its characters."""

NUMBER_BYTES = 32
"""Of a number beyond a place for it; none for those below 257, of up to 3 digits."""

READ_BYTES = 16
"""Of arrays that are read, for a number: rows are read block by block, and joined."""

MOST_TIMES = 6
SPARE_BYTES = 56 * 2**20
"""What may be taken beside a body, in times of its bytes, and as such."""

MOST_LISTS = 2**19
"""Of an array: each costs some microseconds. An embedding input has one a feature and row."""

MOST_LISTS_OF_INTEGERS = 2**16
"""Lengths may be a list a feature."""

MOST_EXPLAINED = 2**20
"""Elements that are looked through for what is wrong."""

LIST_STEPS = 16
"""How many of them a list counts for."""

MOST_AXES = 3
"""Of any input: an embedding one is F x B x D."""


class JsonParser:
    """Parses bodies, one at a time."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def parse(self, body: bytes | bytearray) -> simdjson.Object:
        """Parse a body; the object is good until the next call.

        Raises:
            InvalidRequest: not JSON, or not an object.
            RequestTooLarge: more values than can be read safely.
        """
        if len(body) > MOST_COMMAS and body.count(b",") > MOST_COMMAS:
            message = (
                f"body: received more than {MOST_COMMAS} commas, expected fewer values in JSON; "
                "send fewer rows, or protobuf"
            )
            raise RequestTooLarge(message)
        if len(body) > KEPT_PARSER_BYTES:
            Memory(body).check_parsed()
        document = self._parse(body)
        if not isinstance(document, simdjson.Object):
            message = f"body: received {shown(document)}, expected a JSON object"
            raise InvalidRequest(message)
        return document

    def _parse(self, body: bytes | bytearray) -> Any:
        parser = simdjson.Parser() if len(body) > KEPT_PARSER_BYTES else self._parser
        try:
            return parser.parse(body)
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
        RequestTooLarge: more elements than the column may hold.
    """
    if not isinstance(value, simdjson.Array):
        message = f"{name}: received {shown(value)}, expected an array"
        raise InvalidRequest(message)
    shape = _shape(name, value, column)
    if shape is None:
        raise InvalidRequest(_explain(name, value, column))
    size = math.prod(shape)
    check_size(name, size, column)
    try:
        buffer = value.as_buffer(of_type="i" if column.is_integer else "d")
    except (TypeError, ValueError):
        raise InvalidRequest(_explain(name, value, column)) from None
    flat = np.frombuffer(buffer, dtype=np.int64 if column.is_integer else np.float64)
    if flat.size != size:
        raise InvalidRequest(_explain(name, value, column))
    return flat if len(shape) == 1 else flat.reshape(shape)


def count_lists(shape: Sequence[int]) -> int:
    """How many lists an array of a shape is written with."""
    lists = level = 1
    for size in shape[:-1]:
        level *= size
        lists += level
    return lists


def refuse_nested(read: Iterable[tuple[str, Any, Column, Sequence[int]]]) -> None:
    """Refuse an array that holds a list where others hold a number.

    simdjson reads through it as if its numbers were the outer list's. It costs as much as reading,
    so it is for bodies that hold more lists than the shapes of all that was read.

    Args:
        read: arrays, as name, value, column and the shape that `read_array` found.

    Raises:
        InvalidRequest: names the array.
    """
    for name, value, column, shape in read:
        if cast("bytes", value.mini).count(b"[") != count_lists(shape):
            raise InvalidRequest(_explain(name, value, column))


class Memory:
    """What reading a body takes, known before anything of it becomes a Python object."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._bytes = len(body)
        self._most = MOST_TIMES * len(body) + SPARE_BYTES
        counts = {character: body.count(character) for character in OBJECT_BYTES}
        self._values = sum(counts.values())
        self._parsed = PARSED_BYTES * self._values
        self._read = READ_BYTES * counts[b","]
        self._whole = _object_bytes(body, counts)

    @classmethod
    def of(cls, body: bytes | bytearray) -> "Memory | None":
        """None for a body so small that it need not be counted."""
        return cls(body) if len(body) > SMALL_BYTES else None

    @property
    def fits_whole(self) -> bool:
        """Whether all may be made objects at once, and read into arrays."""
        return self._parsed + self._whole + self._read <= self._most

    def check_parsed(self) -> None:
        """See that the body can be parsed.

        Raises:
            RequestTooLarge: it would take too much memory.
        """
        self._check(self._parsed)

    def check_whole(self) -> None:
        """See that all can be made objects at once.

        Raises:
            RequestTooLarge: they would take too much memory.
        """
        self._check(self._parsed + self._whole)

    def check_part(self, part: bytes) -> None:
        """See that a part can be made objects, where all that was read before is arrays.

        Args:
            part: of the body, as JSON too.

        Raises:
            RequestTooLarge: they would take too much memory.
        """
        counts = {character: part.count(character) for character in OBJECT_BYTES}
        self._check(self._parsed + self._read + _object_bytes(part, counts))

    def _check(self, needed: int) -> None:
        if needed > self._most:
            message = (
                f"body: received {self._values} values, names and lists in {self._bytes} bytes, "
                f"which would take {needed // 2**20} MB to read; send fewer rows, or protobuf"
            )
            raise RequestTooLarge(message)


def _object_bytes(text: bytes | bytearray, counts: Mapping[bytes, int]) -> int:
    """Of the Python objects that JSON text makes, at most."""
    numbers = min(counts[b","], (len(text) - counts[b","]) // 3)
    needed = sum(count * OBJECT_BYTES[character] for character, count in counts.items())
    return needed + STRING_BYTES * (text.count(b'"') // 2) + NUMBER_BYTES * numbers


def names(where: str, value: simdjson.Object, most: int) -> list[str]:
    """The names that an object gives, in order.

    Args:
        where: the object's place in the body, for messages.
        value: the object.
        most: how many it may have.

    Raises:
        InvalidRequest: a name is given twice, or there are more.
    """
    if len(value) > most:
        message = f"{where}: received {len(value)} names, expected at most {most}"
        raise InvalidRequest(message)
    given = list(value)
    if len(set(given)) < len(given):
        twice = next(name for name, count in Counter(given).items() if count > 1)
        message = f"{where}: {shortened(twice)} is given twice"
        raise InvalidRequest(message)
    return given


def check_names(body: bytes | bytearray) -> None:
    """Refuse a name that an object gives twice, however deep it lies: simdjson takes the last one.

    Args:
        body: valid JSON, in UTF-8.

    Raises:
        InvalidRequest: a name is given twice, or objects are nested too deeply to see it.
    """
    try:
        json.loads(body, object_pairs_hook=_once, parse_float=len, parse_int=len)
    except RecursionError:
        message = "body: its objects are nested too deeply"
        raise InvalidRequest(message) from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        twice = next(
            name for name, count in Counter(next(zip(*pairs, strict=True))).items() if count > 1
        )
        message = f"body: {shortened(twice)} is given twice"
        raise InvalidRequest(message)


def check_size(name: str, size: int, column: Column) -> None:
    """Compare with the limits before anything is allocated.

    Raises:
        RequestTooLarge: more elements than the column may hold.
    """
    if column.most is not None and size > column.most:
        message = (
            f"{name}: received {size} elements, expected at most {column.most} ({column.limit})"
        )
        raise RequestTooLarge(message)


def shown(value: Any) -> str:
    """A received value, short enough for a message."""
    if isinstance(value, simdjson.Object | dict):
        return "an object"
    if isinstance(value, simdjson.Array | list):
        return "an array"
    if isinstance(value, str):
        value = value[:SHOWN_CHARACTERS]  # its quotes make it long still
    return shortened(orjson.dumps(value, default=str).decode())


def shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """A name or a value that a client gave, short enough for a message."""
    return text if len(text) <= most else f"{text[:most]}…"


def _shape(name: str, array: simdjson.Array, column: Column) -> tuple[int, ...] | None:
    """The shape that an array's lists have, None if they are ragged; touches lists, not numbers."""
    shape = [len(array)]
    level: list[Any] = [array]
    while shape[-1] and isinstance(level[0][0], simdjson.Array):
        if len(shape) == MOST_AXES:
            message = f"{name}: its lists are nested deeper than {MOST_AXES} levels"
            raise InvalidRequest(message)
        lists = len(level) * shape[-1]
        check_size(name, lists, column)
        most = MOST_LISTS_OF_INTEGERS if column.is_integer else MOST_LISTS
        if lists > most:
            message = f"{name}: received {lists} lists, expected at most {most}"
            raise RequestTooLarge(message)
        level = list(chain.from_iterable(level))
        try:
            lengths = set(map(len, level))
        except TypeError:  # something else among the lists
            return None
        if len(lengths) > 1:
            return None
        shape.append(lengths.pop())
    return tuple(shape)


def _explain(name: str, array: simdjson.Array, column: Column) -> str:
    """What is wrong with an array: the first element of a wrong kind, else its lists' lengths."""
    kind = "signed 64-bit integers" if column.is_integer else "numbers"
    path: list[int] = []
    seen = 0
    open_lists = [enumerate(array)]
    while open_lists:
        for position, value in open_lists[-1]:
            seen += LIST_STEPS if isinstance(value, simdjson.Array) else 1
            if seen > MOST_EXPLAINED:
                return (
                    f"{name}: its lists have different lengths, or hold something else than {kind}"
                )
            if isinstance(value, simdjson.Array):
                path.append(position)
                open_lists.append(enumerate(value))
                break
            if not _is_number(value, column):
                where = "".join(f"[{index}]" for index in [*path, position])
                return f"{name}{where}: received {shown(value)}, expected {kind}"
        else:
            open_lists.pop()
            del path[-1:]
    return f"{name}: its lists have different lengths, expected rows of one length"


def _is_number(value: Any, column: Column) -> bool:
    if column.is_integer:
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) in (int, float)
