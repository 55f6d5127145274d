"""JSON bytes to a document, of which nothing becomes a Python object before a codec asks for it.

simdjson parses.
"""

import json
from collections import Counter
from typing import Any

import orjson
import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.json_memory import Memory

KEPT_PARSER_BYTES = 8 * 2**20
"""A parser keeps the memory of the largest body it read, so larger bodies get one of their own."""

SHOWN_CHARACTERS = 80

MOST_COMMAS = 2**24 - 3
"""simdjson counts an array in 24 bits, and pysimdjson writes beyond a list that it made by a
count that was cut off. A body with fewer commas has no such array."""


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
            raise RequestTooLarge(
                where="body",
                received=f"more than {MOST_COMMAS} commas",
                expected="fewer values in JSON",
                hint="send fewer rows, or protobuf",
            )
        if len(body) > KEPT_PARSER_BYTES:
            Memory(body).check_parsed()
        document = self._parse(body)
        if not isinstance(document, simdjson.Object):
            raise InvalidRequest(where="body", received=shown(document), expected="a JSON object")
        return document

    def _parse(self, body: bytes | bytearray) -> Any:
        parser = simdjson.Parser() if len(body) > KEPT_PARSER_BYTES else self._parser
        try:
            return parser.parse(body)
        except UnicodeDecodeError:
            raise InvalidRequest(said="not valid UTF-8", where="body") from None
        except (ValueError, RuntimeError) as error:
            # It will not parse while an object of an earlier body is alive (in a traceback, say).
            if "re-use" in str(error):
                self._parser = simdjson.Parser()
                return self._parse(body)
            reason = str(error).partition(":")[2].strip().partition(". ")[0]
            raise InvalidRequest(said=f"not valid JSON ({reason or error})", where="body") from None


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
        raise InvalidRequest(
            where=where, received=f"{len(value)} names", expected=f"at most {most}"
        )
    given = list(value)
    if len(set(given)) < len(given):
        twice = next(name for name, count in Counter(given).items() if count > 1)
        raise InvalidRequest(said=f"{shortened(twice)} is given twice", where=where)
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
        raise InvalidRequest(said="its objects are nested too deeply", where="body") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        twice = next(
            name for name, count in Counter(next(zip(*pairs, strict=True))).items() if count > 1
        )
        raise InvalidRequest(said=f"{shortened(twice)} is given twice", where="body")


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
