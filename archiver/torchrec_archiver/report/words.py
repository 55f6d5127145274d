"""Words and numbers as people read them; what an archive holds is not trusted to be either."""

from collections.abc import Sequence
from typing import Any

MOST_LETTERS = 120
"""Of a name, or of anything else that an archive says in its own words."""
MOST_NAMES = 20
"""In one line."""
KILO = 1000
UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def plain(said: Any, most: int = MOST_LETTERS) -> str:
    """Text of an archive's own in one line, without what a terminal or a reader takes for orders.

    What is not printable (control characters, escape sequences, marks that turn the direction of
    writing, line ends, lone surrogates) is shown by its number, as Python writes it.
    """
    text = str(said)
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in cut
        )
    return cut if len(text) <= most else f"{cut}… ({len(text):,} letters)"


def size(count: int) -> str:
    """Bytes, in the unit that leaves three or four digits."""
    if count < KILO:
        return f"{count} B"
    value, unit = float(count), 0
    # 999.5 kB would be rounded to 1,000.
    while value >= KILO - 0.5 and unit < len(UNITS) - 1:
        value, unit = value / KILO, unit + 1
    return f"{value:,.{0 if value >= 100 else 1}f} {UNITS[unit]}"


def many(count: int) -> str:
    """A number that needs no more than three digits in front of its unit."""
    for power, name in ((9, "billion"), (6, "million")):
        if abs(count) >= 10**power:
            return f"{count / 10**power:,.1f} {name}"
    return f"{count:,}"


def number(value: float | None) -> str:
    """A measure, in two digits; `?` for one that nobody took."""
    return "?" if value is None else f"{value:.2g}"


def counted(count: int, one: str) -> str:
    """As `1 table` and `7 tables`."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def listed(words: list[str]) -> str:
    """As `1, 4 and 16`."""
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else "".join(words)


def seconds(value: float) -> str:
    """A time, in the unit that a request's is told in."""
    return f"{value * 1e6:,.0f} µs" if value < 1e-3 else f"{value * 1e3:,.1f} ms"


def joined(said: Sequence[Any]) -> str:
    """Names one behind another, the first ones of many."""
    more = [f"{len(said) - MOST_NAMES:,} more"] if len(said) > MOST_NAMES else []
    return ", ".join([plain(name) for name in said[:MOST_NAMES]] + more)
