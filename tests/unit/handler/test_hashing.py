"""Raw ids become the same rows wherever they are hashed, for as long as archives live."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import examples
from torchrec_handler.archive.format import HASH_FUNCTIONS
from torchrec_handler.hashing import FUNCTION, hash_ids, hash_strings, to_ids

WORD = 2**64 - 1
ONE, TWO, THREE = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
FOUR, FIVE = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

INTEGERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, -1, 2**63, 2**64 - 1]))
ROWS = st.one_of(st.integers(1, 2**63), st.integers(1, 1000))
SEEDS = st.integers(0, 2**63 - 1)


def turned(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & WORD


def mixed(start: int, lane: int) -> int:
    return turned((start + lane * TWO) & WORD, 31) * ONE & WORD


def xxh64(data: bytes, seed: int) -> int:
    """As https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md has it."""
    size, at = len(data), 0
    if size >= 32:
        lanes = [seed + ONE + TWO, seed + TWO, seed, seed - ONE]
        while at + 32 <= size:
            for lane in range(4):
                word = int.from_bytes(data[at : at + 8], "little")
                lanes[lane] = mixed(lanes[lane], word)
                at += 8
        found = sum(turned(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            found = ((found & WORD ^ mixed(0, lane)) * ONE + FOUR) & WORD
    else:
        found = seed + FIVE
    found = (found + size) & WORD
    for width in (8, 4, 1):
        while at + width <= size:
            word = int.from_bytes(data[at : at + width], "little")
            at += width
            if width == 8:
                found = (turned(found ^ mixed(0, word), 27) * ONE + FOUR) & WORD
            elif width == 4:
                found = (turned(found ^ word * ONE & WORD, 23) * TWO + THREE) & WORD
            else:
                found = turned(found ^ word * FIVE & WORD, 11) * ONE & WORD
    found = (found ^ found >> 33) * TWO & WORD
    found = (found ^ found >> 29) * THREE & WORD
    return found ^ found >> 32


def row(value: str | int, rows: int, seed: int) -> int:
    """A row as the page on hashing defines it."""
    word = xxh64(value.encode(), 0) if isinstance(value, str) else value & WORD
    return xxh64(word.to_bytes(8, "little"), seed) % rows


# Numbers that trained tables depend on: whoever changes one breaks every model that was trained.


def test_numbers_never_change() -> None:
    strings = ["", "a", "u-81f3", "Amélie", "日本" * 20]
    assert hash_strings(strings, 1_000_003, seed=7).tolist() == [
        785758,
        572742,
        317015,
        298081,
        799199,
    ]
    ids = [0, 1, -1, 2**62 + 9]
    assert hash_ids(ids, 1_000_003, seed=7).tolist() == [58081, 760740, 231759, 750356]
    assert hash_ids(ids, 2**63).tolist() == [
        3803688792395291579,
        2245549191594285461,
        419176360057226953,
        1393211615613601913,
    ]
    # The first three are those of xxHash's own tests.
    assert to_ids(["", "a", "abc", 42, -1]).view(np.uint64).tolist() == [
        0xEF46DB3751D8E999,
        0xD24EC4F1A98C6E5B,
        0x44BC2CF5AD770999,
        42,
        2**64 - 1,
    ]


def test_an_archive_calls_it_by_its_name() -> None:
    assert HASH_FUNCTIONS == (FUNCTION,) == ("xxh64",)


# What it is.


@examples()
@given(st.lists(st.one_of(INTEGERS, st.text(max_size=80)), max_size=20), ROWS, SEEDS)
def test_is_what_plain_python_computes(values: list[str | int], rows: int, seed: int) -> None:
    assert hash_strings(values, rows, seed).tolist() == [row(one, rows, seed) for one in values]


@examples()
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), ROWS, SEEDS)
def test_integers_are_hashed_as_arrays(values: list[int], rows: int, seed: int) -> None:
    found = hash_ids(np.array(values, np.int64), rows, seed)
    assert found.tolist() == [row(one, rows, seed) for one in values]
    unsigned = np.array(values, np.int64).view(np.uint64)
    assert hash_ids(unsigned, rows, seed).tolist() == found.tolist()


def test_ids_keep_their_shape_and_come_as_int64() -> None:
    found = hash_ids(np.arange(6, dtype=np.int32).reshape(2, 3), 50)
    assert (found.shape, found.dtype.name) == ((2, 3), "int64")
    assert found.reshape(-1).tolist() == hash_ids([0, 1, 2, 3, 4, 5], 50).tolist()
    assert hash_ids([], 50).tolist() == hash_strings([], 50).tolist() == []
    assert hash_ids(3, 50).shape == ()


def test_arrays_of_strings_and_bytes_are_as_lists_of_them() -> None:
    expected = to_ids(["u-1", "Amélie"]).tolist()
    assert to_ids(np.array(["u-1", "Amélie"])).tolist() == expected
    assert to_ids(np.array(["u-1", "Amélie"], object)).tolist() == expected
    assert to_ids([b"u-1", "Amélie".encode()]).tolist() == expected
    assert to_ids(np.array([3, 4])).tolist() == [3, 4]


def test_ids_of_strings_may_be_hashed_later() -> None:
    """By a client that cannot send strings."""
    names = ["u-1", "u-2"]
    assert hash_ids(to_ids(names), 50, 3).tolist() == hash_strings(names, 50, 3).tolist()


def test_rows_are_used_evenly_and_seeds_differ() -> None:
    rows = 1_000
    for ids in (np.arange(100_000), np.arange(100_000) * 2**32):
        counts = np.bincount(hash_ids(ids, rows), minlength=rows)
        # 100 a row, with a standard deviation of 10.
        assert 50 < counts.min() <= counts.max() < 150
    same = hash_ids(np.arange(100_000), rows, 1) == hash_ids(np.arange(100_000), rows, 2)
    assert same.mean() < 0.01


# What is refused.


@pytest.mark.parametrize(
    ("ids", "rows", "seed", "kind", "message"),
    [
        ([1.5], 9, 0, TypeError, "ids: received float64, expected integers of 64 bits"),
        (["a"], 9, 0, TypeError, "ids: received <U1, expected integers of 64 bits"),
        ([1], 0, 0, ValueError, f"rows: received 0, expected a whole number from 1 to {2**63}"),
        (
            [1],
            2**63 + 1,
            0,
            ValueError,
            f"rows: received {2**63 + 1}, expected a whole number from 1 to {2**63}",
        ),
        (
            [1],
            9,
            -1,
            ValueError,
            f"seed: received -1, expected a whole number from 0 to {2**63 - 1}",
        ),
        ([1], 9.0, 0, TypeError, f"rows: received 9.0, expected a whole number from 1 to {2**63}"),
    ],
)
def test_what_cannot_be_hashed_is_named(
    ids: list[object], rows: int, seed: int, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        hash_ids(ids, rows, seed)  # type: ignore[arg-type]


def test_more_than_64_bits_are_no_id() -> None:
    for number in (2**64, -(2**63) - 1):
        message = f"received {number}, expected an integer of 64 bits"
        with pytest.raises(OverflowError, match=f"^{re.escape(message)}$"):
            to_ids([number])


def test_it_imports_no_torch() -> None:
    code = "import sys, torchrec_handler.hashing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout == b"False\n"
