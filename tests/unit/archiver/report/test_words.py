"""Text and numbers for people."""

import pytest

from tests.support.archives.hostile import EVIL, SHOWN
from torchrec_archiver.report import words


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("t_user", "t_user"),
        ("Größe 大小 😀", "Größe 大小 😀"),
        ("a\x1b]8;;http://x\x07b", "a\\x1b]8;;http://x\\x07b"),
        ("a\u202eb\u200fc\ufeff", "a\\u202eb\\u200fc\\ufeff"),
        ("one\ntwo\r\u2028", "one\\ntwo\\r\\u2028"),
        ("half \ud800", "half \\ud800"),
        ("x" * 120, "x" * 120),
        ("x" * 5000, "x" * 120 + "… (5,000 letters)"),
        ("\x00" * 5000, "\\x00" * 120 + "… (5,000 letters)"),
        (7, "7"),
    ],
)
def test_text_is_one_line_without_orders(said: object, shown: str) -> None:
    assert words.plain(said) == shown
    words.plain(said).encode()


def test_hostile_text_is_shown_by_its_letters() -> None:
    assert words.plain(EVIL) == SHOWN


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_576, "99.6 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (2**63, "9.2 EB"),
    ],
)
def test_bytes_have_a_unit(count: int, said: str) -> None:
    assert words.size(count) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (999_999, "999,999"), (50_050_000, "50.0 million"), (10**12, "1,000.0 billion")],
)
def test_large_numbers_are_short(count: int, said: str) -> None:
    assert words.many(count) == said


def test_numbers_lists_and_times() -> None:
    assert [words.number(value) for value in (None, 0.0, 0.00029, 1234.5)] == [
        *("?", "0", "0.00029", "1.2e+03"),
    ]
    assert [words.counted(count, "table") for count in (0, 1, 1000)] == [
        *("0 tables", "1 table", "1,000 tables"),
    ]
    assert [words.listed(some) for some in ([], ["1"], ["1", "4", "16"])] == [
        "",
        "1",
        "1, 4 and 16",
    ]
    assert [words.seconds(value) for value in (2.5e-6, 999e-6, 1.5e-3, 2.0)] == [
        *("2 µs", "999 µs", "1.5 ms", "2,000.0 ms"),
    ]
