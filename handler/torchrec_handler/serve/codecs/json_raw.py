"""Arrays that hold more than numbers: strings as ids to be hashed, and null for a missing number.

Nothing of a body but a block of strings at a time is a Python object.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import simdjson

from torchrec_handler.errors import InvalidRequest
from torchrec_handler.hashing import to_ids
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_document import shown
from torchrec_handler.serve.request import Mask

BLOCK_IDS = 4_096
"""What is made Python objects at once, before the next."""

RAW = frozenset({str, int})
INT64_IDS = 2**63

MISSING, NUMBER = b"null", b"1e99"
"""A number that no float32 holds stands for a missing one while an array is read: it is as long."""


class RawIds(NamedTuple):
    """Ids of an array, some of which only a hashed feature may have."""

    where: str
    """The array's place, for messages."""
    array: simdjson.Array
    column: Column
    ids: npt.NDArray[np.int64]
    """[N]"""
    is_text: Mask
    """[N], of strings."""
    is_raw: Mask
    """[N], of strings and of integers beyond int64."""


def read_ids(where: str, array: simdjson.Array, column: Column) -> RawIds | None:
    """Read an array of strings and integers; None where it holds something else."""
    size = len(array)
    ids = np.empty(size, np.int64)
    is_text, is_raw = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    left: Iterator[Any] = iter(array)
    first = 0
    while block := list(islice(left, BLOCK_IDS)):
        kinds = set(map(type, block))
        if not kinds <= RAW:
            return None
        own = slice(first, first + len(block))
        ids[own] = to_ids(block)
        is_text[own] = kinds == {str} or [type(value) is str for value in block]
        is_raw[own] = kinds == {str} or [
            type(value) is str or value >= INT64_IDS for value in block
        ]
        first += len(block)
    return RawIds(where, array, column, ids, is_text, is_raw)


def check_features(read: Iterable[RawIds], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """See that only hashed features have strings and integers beyond int64.

    Args:
        read: ids that may be such.
        arrays: all that was read, by name; where lengths are missing, or do not add up, the checks
            of a request tell of it.

    Raises:
        InvalidRequest: another feature has one; names it.
    """
    for where, array, column, _, _, is_raw in read:
        hashed = column.hashed
        lengths = arrays.get(column.lengths)
        if lengths is None or lengths.size % len(hashed):
            continue
        ends = lengths.reshape(len(hashed), -1).sum(axis=1, dtype=np.int64).cumsum()
        features = np.searchsorted(ends, np.arange(is_raw.size), side="right")
        is_known = features < len(hashed)
        is_bad = is_raw & is_known & ~np.array(hashed)[np.where(is_known, features, 0)]
        if is_bad.any():
            position = int(is_bad.argmax())
            names = column.features
            known = [name for name, is_hashed in zip(names, hashed, strict=True) if is_hashed]
            raise InvalidRequest(
                where=f"{where}[{position}]",
                received=f"{shown(array[position])} of feature {names[features[position]]!r}",
                expected="a signed 64-bit integer",
                hint=f"hashed are {', '.join(known)}",
            )


def read_missing(
    where: str, array: simdjson.Array, column: Column, shape: Sequence[int]
) -> npt.NDArray[np.float64] | None:
    """Read an array of numbers, null as NaN; None where it holds something else.

    Raises:
        InvalidRequest: a number without a default is missing, or the one that stands for them is
            among those given, which no float32 holds.
    """
    text = cast("bytes", array.mini)
    if b'"' in text or MISSING not in text:
        return None
    parsed: Any = simdjson.Parser().parse(text.replace(MISSING, NUMBER))
    try:
        numbers = np.frombuffer(parsed.as_buffer(of_type="d"), np.float64).reshape(shape)
    except (TypeError, ValueError):
        return None
    is_missing = numbers == float(NUMBER)
    if np.count_nonzero(is_missing) != text.count(MISSING):
        received = str(float(NUMBER))
        raise InvalidRequest(where=where, received=received, expected="finite float32s")
    for at, name in enumerate(column.features):
        bad = is_missing.reshape(-1)[at :: len(column.features)]
        if not column.defaults[at] and bad.any():
            position = np.unravel_index(at + int(bad.argmax()) * len(column.features), shape)
            index = "".join(f"[{part}]" for part in position)
            raise InvalidRequest(
                where=f"{where}{index}",
                received="null",
                expected=f"a number: feature {name!r} has no default",
            )
    return np.where(is_missing, np.nan, numbers)
