"""Hashes raw ids into a table's rows: the same numbers in training and in serving.

Import it in the code that prepares training data; it needs numpy and xxhash, no torch. An id is 64
bits: an integer is one as it is, a string stands for its XXH64. Its row is the XXH64 of its eight
little-endian bytes, modulo the rows. Numbers never change: an archive names the function.

Letters in shapes: N ids.
"""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

FUNCTION = "xxh64"
"""What archives call this."""

MOST_ROWS = 2**63
MOST_SEED = 2**63 - 1

Ids = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_PRIMES = tuple(
    np.array([prime], np.uint64)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
"""XXH64's."""
_WORD_BYTES = 8


def to_ids(values: Iterable[str | bytes | int]) -> Ids:
    """Ids of 64 bits [N] of strings and integers, which may stand beside each other.

    A string's is the XXH64 (seed 0) of its bytes in UTF-8; an integer's is itself, and from 2^63 on
    the one below 0 of the same 64 bits. The integer 42 and the string "42" are two ids.

    Raises:
        TypeError: one of them is neither.
        OverflowError: an integer has more than 64 bits.
    """
    given: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    is_text = set(map(type, given)) == {str}
    words = map(xxhash.xxh64_intdigest, map(str.encode, given)) if is_text else map(_word, given)
    return np.fromiter(words, np.uint64, len(given)).view(np.int64)


def hash_ids(ids: npt.ArrayLike, rows: int, seed: int = 0) -> Ids:
    """Rows of ids of 64 bits, in the ids' shape.

    Args:
        ids: integers.
        rows: of the table; 1 to 2^63. The rows differ in how likely they are by rows / 2^64.
        seed: gives tables, or features, hashes of their own; 0 to 2^63 - 1.

    Returns:
        Of each id a row from 0 to rows - 1.

    Raises:
        TypeError: ids, rows or seed are no integers.
        ValueError: rows or seed are out of range.
    """
    given = np.asarray(ids)
    if given.size and given.dtype.kind not in "iu":
        message = f"ids: received {given.dtype}, expected integers of 64 bits"
        raise TypeError(message)
    check(rows, seed)
    words = given.astype(np.uint64).reshape(-1)
    each = np.array([rows], np.uint64), np.array([seed], np.uint64)
    return hash_each(words, *each).reshape(given.shape)


def hash_strings(values: Iterable[str | bytes | int], rows: int, seed: int = 0) -> Ids:
    """Rows [N] of strings: `hash_ids` of `to_ids`.

    Raises:
        TypeError, OverflowError, ValueError: see there.
    """
    return hash_ids(to_ids(values), rows, seed)


def hash_each(ids: Words, rows: Words, seeds: Words) -> Ids:
    """Rows of ids, each with rows and a seed of its own; `check` has to let these pass.

    Args:
        ids: [N]
        rows: [N] or [1]
        seeds: [N] or [1]
    """
    one, two, three, four, five = _PRIMES
    words = (seeds + five + np.uint64(_WORD_BYTES)) ^ (_turned(ids * two, 31) * one)
    words = _turned(words, 27) * one + four
    words = (words ^ (words >> np.uint64(33))) * two
    words = (words ^ (words >> np.uint64(29))) * three
    words ^= words >> np.uint64(32)
    hashed: Ids = (words % rows).astype(np.int64)
    return hashed


def check(rows: int, seed: int) -> None:
    """See that ids can be hashed so.

    Raises:
        TypeError: rows or seed are no integers.
        ValueError: they are out of range.
    """
    for name, number, least, most in (("rows", rows, 1, MOST_ROWS), ("seed", seed, 0, MOST_SEED)):
        message = f"{name}: received {number!r}, expected a whole number from {least} to {most}"
        if not isinstance(number, int | np.integer):
            raise TypeError(message)
        if not least <= number <= most:
            raise ValueError(message)


def _word(value: Any) -> int:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return xxhash.xxh64_intdigest(value)
    number = operator.index(value)
    if not -(2**63) <= number < 2**64:
        message = f"received {number}, expected an integer of 64 bits"
        raise OverflowError(message)
    return number & (2**64 - 1)


def _turned(words: Words, bits: int) -> Words:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))
