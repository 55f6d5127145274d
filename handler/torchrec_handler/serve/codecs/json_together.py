"""Small bodies of JSON columns that differ in their numbers only, put together into one body.

{"a": [[1, 2]], "b": [3]} and {"a": [[4, 5]], "b": [6, 7]} -> {"a": [[1, 2],[4, 5]], "b": [3,6, 7]}

The format's codec reads that as it reads any body, so every rule stands there; where one is broken,
each body is to be read by itself, and told of it in its own words. A body has no part in what
another one holds: in bodies of one form brackets close alike, each in the list where it opened, and
between two bodies' numbers stands a comma.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any

import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.codecs.single_rows import single_rows
from torchrec_handler.serve.request import Columns

LONGEST = 4_096
"""In bytes. To put longer ones together takes longer than it saves."""

MOST = 64
"""Bodies in one: of at most 256 KB, see `json_memory`."""

SEPARATOR = b"\0"
"""Stands in no JSON."""

SPACES = b" \t\r\n"
NUMBERS = b"0123456789+-.eE," + SPACES
"""What numbers are written with, and what may stand between them."""


def plain_names(names: Collection[str]) -> frozenset[bytes]:
    """Names that JSON writes as they are."""
    return frozenset(name.encode() for name in names if re.fullmatch(r"[\w.]+", name, re.ASCII))


def is_short(body: bytes | bytearray) -> bool:
    """Whether a body is to be looked at: a short JSON object, as most clients write it."""
    return len(body) <= LONGEST and body.startswith(b'{"') and SEPARATOR not in body


def forms(bodies: Iterable[bytes | bytearray]) -> list[bytes]:
    """Of each body all but numbers and what stands between them: alike in those to put together."""
    return SEPARATOR.join(bodies).translate(None, NUMBERS).split(SEPARATOR)


class Together:
    """Bodies of one form as one."""

    def __init__(self, bodies: Sequence[bytes | bytearray], known: frozenset[bytes]) -> None:
        """Put them together.

        Args:
            bodies: short, at least one.
            known: names that they may give.

        Raises:
            InvalidRequest: they give other names, or are not written alike.
        """
        names = bytes(bodies[0]).split(b'"')[1::2]
        if not known.issuperset(names):
            raise unlike()
        parts = b'"'.join(bodies).split(b'"')
        step = len(parts) // len(bodies)
        given = [set(parts[at::step]) for at in range(1, step, 2)]
        if step % 2 == 0 or given != [{name} for name in names]:
            raise unlike()
        texts = [parts[at::step] for at in range(2, step, 2)]
        closes = [b","] * (len(names) - 1) + [b"}"]
        self._insides = list(map(_insides, texts, closes))
        self.body = b"{%b}" % b",".join(
            b'"%b":[%b]' % (name, b",".join(filter(None, insides)))
            for name, insides in zip(names, self._insides, strict=True)
        )

    def cut(self, read: Columns) -> list[Columns]:
        """Each body's own part of what was read of all."""
        names = tuple(read.arrays)
        parts = map(_cut, read.arrays.values(), self._sizes(read).values())
        return [Columns(dict(zip(names, own, strict=True))) for own in zip(*parts, strict=True)]

    def rows(self, read: Columns, inputs: Sequence[InputSignature]) -> Columns:
        """What was read of all as one request's, of a row of each body.

        Raises:
            InvalidRequest: a body has more, or something else that it has alone.
        """
        return single_rows(read.arrays, self._sizes(read), inputs)

    def _sizes(self, read: Columns) -> dict[str, list[int]]:
        """How much of the first axis of each array is each body's."""
        arrays = read.arrays.items()
        return {
            name: _sizes(array, insides)
            for (name, array), insides in zip(arrays, self._insides, strict=True)
        }


def _insides(texts: Sequence[bytes], close: bytes) -> list[bytes]:
    """What stands between the outer brackets of each of the texts, which are like `:[1, 2],`."""
    first = texts[0]
    start, stop = first.find(b"[") + 1, first.rfind(b"]") - len(first)
    around = set(map(itemgetter(slice(start), slice(stop, None)), texts))
    opened, closed = (part.translate(None, SPACES) for part in around.pop())
    if around or (opened, closed) != (b":[", b"]" + close):
        raise unlike()
    return list(map(itemgetter(slice(start, stop)), texts))


def _sizes(array: npt.NDArray[Any], insides: Sequence[bytes]) -> list[int]:
    """Of an array of all bodies what each has: lists, as many in each body, or numbers."""
    if b"[" in insides[0]:
        return [len(array) // len(insides)] * len(insides)
    return [inside.count(b",") + 1 if inside else 0 for inside in insides]


def _cut(array: npt.NDArray[Any], sizes: Sequence[int]) -> list[npt.NDArray[Any]]:
    """An array of all bodies by its first axis."""
    if sizes.count(sizes[0]) == len(sizes):
        return list(array.reshape(len(sizes), sizes[0], *array.shape[1:]))
    return [array[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def unlike() -> InvalidRequest:
    """That bodies cannot be put together, which no client is told."""
    return InvalidRequest(said="not written as those beside it", where="body")
