"""Arrays of numbers of a parsed document, read straight into buffers."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_document import shown
from torchrec_handler.serve.codecs.json_raw import RawIds, read_ids, read_missing

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


def read_array(name: str, value: Any, column: Column, raw: list[RawIds]) -> npt.NDArray[Any]:
    """One array, as int64 or float64, with the shape its lists have.

    Args:
        name: its place, for messages.
        value: what the body holds.
        column: what it may hold.
        raw: gets ids that only a hashed feature may have, for `check_features`.

    Raises:
        InvalidRequest: not an array, ragged, or an element is not a number of the right kind.
        RequestTooLarge: more elements than the column may hold.
    """
    if not isinstance(value, simdjson.Array):
        raise InvalidRequest(where=name, received=shown(value), expected="an array")
    shape = _shape(name, value, column)
    if shape is None:
        raise _explain(name, value, column)
    size = math.prod(shape)
    check_size(name, size, column)
    try:
        buffer = value.as_buffer(of_type="i" if column.is_integer else "d")
    except (TypeError, ValueError):
        array = _read_raw(name, value, column, shape, raw)
        if array is None:
            raise _explain(name, value, column) from None
        return array
    flat = np.frombuffer(buffer, dtype=np.int64 if column.is_integer else np.float64)
    if flat.size != size:
        raise _explain(name, value, column)
    return flat if len(shape) == 1 else flat.reshape(shape)


def count_lists(shape: Sequence[int]) -> int:
    """How many lists an array of a shape is written with."""
    if len(shape) == 1:
        return 1
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
        text = cast("bytes", value.mini)
        # Among strings `read_ids` finds a list, and they may hold brackets.
        if not (column.hashed and b'"' in text) and text.count(b"[") != count_lists(shape):
            raise _explain(name, value, column)


def check_size(name: str, size: int, column: Column) -> None:
    """Compare with the limits before anything is allocated.

    Raises:
        RequestTooLarge: more elements than the column may hold.
    """
    if column.most is not None and size > column.most:
        raise RequestTooLarge(
            where=name,
            received=f"{size} elements",
            expected=f"at most {column.most} ({column.limit})",
        )


def _read_raw(
    name: str, array: simdjson.Array, column: Column, shape: Sequence[int], raw: list[RawIds]
) -> npt.NDArray[Any] | None:
    """Ids that are strings, or numbers some of which are missing; None where there may be none."""
    if column.defaults:
        return read_missing(name, array, column, shape)
    if not column.hashed:
        return None
    if len(shape) > 1:
        received = f"shape {' x '.join(map(str, shape))}"
        raise InvalidRequest(where=name, received=received, expected="a flat list")
    read = read_ids(name, array, column)
    if read is None:
        return None
    raw.append(read)
    return read.ids


def _shape(name: str, array: simdjson.Array, column: Column) -> tuple[int, ...] | None:
    """The shape that an array's lists have, None if they are ragged; touches lists, not numbers."""
    size = len(array)
    if not size or not isinstance(array[0], simdjson.Array):
        return (size,)
    shape = [size]
    level: list[Any] = [array]
    while shape[-1] and isinstance(level[0][0], simdjson.Array):
        if len(shape) == MOST_AXES:
            raise InvalidRequest(
                said=f"its lists are nested deeper than {MOST_AXES} levels", where=name
            )
        lists = len(level) * shape[-1]
        check_size(name, lists, column)
        most = MOST_LISTS_OF_INTEGERS if column.is_integer else MOST_LISTS
        if lists > most:
            raise RequestTooLarge(where=name, received=f"{lists} lists", expected=f"at most {most}")
        level = list(chain.from_iterable(level))
        try:
            lengths = set(map(len, level))
        except TypeError:  # something else among the lists
            return None
        if len(lengths) > 1:
            return None
        shape.append(lengths.pop())
    return tuple(shape)


def _explain(name: str, array: simdjson.Array, column: Column) -> InvalidRequest:
    """What is wrong with an array: the first element of a wrong kind, else its lists' lengths."""
    kind = "signed 64-bit integers" if column.is_integer else "numbers"
    if column.hashed:
        kind = "strings or 64-bit integers"
    path: list[int] = []
    seen = 0
    open_lists = [enumerate(array)]
    while open_lists:
        for position, value in open_lists[-1]:
            seen += LIST_STEPS if isinstance(value, simdjson.Array) else 1
            if seen > MOST_EXPLAINED:
                said = f"its lists have different lengths, or hold something else than {kind}"
                return InvalidRequest(said, where=name)
            if isinstance(value, simdjson.Array):
                path.append(position)
                open_lists.append(enumerate(value))
                break
            if not _is_number(value, column):
                where = "".join(f"[{index}]" for index in [*path, position])
                return InvalidRequest(where=f"{name}{where}", received=shown(value), expected=kind)
        else:
            open_lists.pop()
            del path[-1:]
    said = "its lists have different lengths"
    return InvalidRequest(said, where=name, expected="rows of one length")


def _is_number(value: Any, column: Column) -> bool:
    if column.hashed:
        return type(value) in (str, int)
    if column.defaults and value is None:
        return True
    if column.is_integer:
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) in (int, float)
