"""JSON rows: one object a row, features by name, and what holds for every row once.

{"instances": [{"age": 31, "genres": [3, 17]}, ...B rows...], "shared": {"user_id": 7}}

A sparse feature is a list of ids or one id; a weighted one a list of [id, weight] pairs; a dense
one a number; an embedding one a list of D numbers. A dense input whose features have no names is
given whole, as a list under the input's own name. An instance's value goes before a shared one.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs import json_values, predictions
from torchrec_handler.serve.codecs.codec import Arguments, Asked, Body, Model
from torchrec_handler.serve.codecs.json_document import names, shortened, shown
from torchrec_handler.serve.codecs.json_features import (
    INSTANCES,
    SHARED,
    Row,
    Rows,
    Vectors,
    check_ids,
    decode_rows,
)
from torchrec_handler.serve.codecs.json_memory import Memory
from torchrec_handler.serve.codecs.row_blocks import count_ids, join
from torchrec_handler.serve.request import Columns, Response

READ_PAST = frozenset({"parameters", "signature_name"})
"""What clients of KServe, Vertex AI and TensorFlow Serving send beside the instances."""

BLOCK_ROWS = 256
"""What is made Python objects at once, before the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instances(Asked):
    """That an answer has a prediction for each instance."""

    rows: int
    """B"""
    qualname: str
    """The method that made it."""


class JsonRows:
    """Reads what has `instances`, unless the model has an input of that name."""

    name = "json_rows"
    content_types = json_values.CONTENT_TYPES

    def __init__(self, model: Model) -> None:
        self._signature = model.signature
        self._limits = model.limits
        self._is_known = INSTANCES not in model.columns

    def reads(self, body: Body) -> bool:
        """Whether it has `instances`."""
        return INSTANCES in body.names and self._is_known

    def decode(self, body: Body) -> tuple[Columns, Instances]:
        """Read a body, block by block: objects that live shortly cost a ninth of the time.

        Raises:
            InvalidRequest: not rows, an unknown or missing feature, or a value of the wrong type.
            RequestTooLarge: more rows or ids than the limits allow, or one of the blocks takes too
                much memory.
        """
        memory = Memory.of(body.content)
        if memory is not None and memory.fits_whole:
            memory = None
        array, shared = _document(body, memory, self._limits)
        vectors: Vectors = {}
        blocks = (
            decode_rows(rows, shared, vectors, self._signature, self._limits)
            for rows in _blocks(array, memory)
        )
        columns = next(blocks)[0] if len(array) <= BLOCK_ROWS else self._join(blocks)
        return columns, Instances(rows=len(array), qualname=body.qualname)

    def arguments(self, body: Body) -> tuple[Arguments, Asked]:
        """A JSON object's values as they are."""
        return json_values.arguments(body)

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:
        """Write arrays as lists, by name, and beside them a prediction for each instance."""
        if isinstance(asked, Instances):
            splits = (self._signature.splits or {}).get(asked.qualname, {})
            answer = predictions.add(answer, asked.rows, splits)
        return json_values.encode(answer)

    def _join(self, blocks: Iterable[tuple[Columns, AbstractSet[str]]]) -> Columns:
        inputs = self._signature.inputs
        given: set[str] = set()
        ids = dict.fromkeys((entry.name for entry in inputs if "sparse" in entry.type), 0)
        read: list[Columns] = []
        for block, names_of_block in blocks:
            given |= names_of_block
            for name in ids:
                ids[name] += count_ids(block, name)
                check_ids(name, ids[name], self._limits)
            read.append(block)
        return join(read, given, self._signature)


def _document(body: Body, memory: Memory | None, limits: Limits) -> tuple[simdjson.Array, Row]:
    document, keys = body.document, body.names
    for name in keys:
        if name not in (INSTANCES, SHARED) and name not in READ_PAST:
            raise InvalidRequest(
                said="unknown key",
                where=shortened(name) or '""',
                expected=f"{INSTANCES} or {SHARED}",
            )
    array = document[INSTANCES]
    if not isinstance(array, simdjson.Array) or len(array) == 0:
        received = "an empty array" if isinstance(array, simdjson.Array) else shown(array)
        raise InvalidRequest(
            where=INSTANCES, received=received, expected="an array of objects, one a row"
        )
    if len(array) > limits.rows_per_request:
        raise RequestTooLarge(
            where=INSTANCES,
            received=f"{len(array)} rows",
            expected=f"at most {limits.rows_per_request} (limits.rows_per_request)",
        )
    if SHARED not in keys:
        return array, {}
    shared = document[SHARED]
    if not isinstance(shared, simdjson.Object):
        raise InvalidRequest(where=SHARED, received=shown(shared), expected="an object")
    names(SHARED, shared, len(shared))
    if memory is not None:
        memory.check_part(_text(shared))
    return array, shared.as_dict()


def _blocks(array: simdjson.Array, memory: Memory | None) -> Iterator[Rows]:
    left = iter(array)
    first = 0
    while found := list(islice(left, BLOCK_ROWS)):
        if set(map(type, found)) != {simdjson.Object}:
            at = next(at for at, row in enumerate(found) if type(row) is not simdjson.Object)
            raise InvalidRequest(
                where=f"{INSTANCES}[{first + at}]", received=shown(found[at]), expected="an object"
            )
        objects = cast("list[simdjson.Object]", found)
        if memory is not None:
            memory.check_part(b"".join(map(_text, objects)))
        rows = Rows((row.as_dict() for row in objects), first)
        if sum(map(len, objects)) > sum(map(len, rows)):
            # Of a name that is given twice the last one was read.
            for position, row in enumerate(objects, first):
                names(f"{INSTANCES}[{position}]", row, len(row))
        yield rows
        first += len(rows)


def _text(value: simdjson.Object) -> bytes:
    return cast("bytes", value.mini)  # its types are wrong there
