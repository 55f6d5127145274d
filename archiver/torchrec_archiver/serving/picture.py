"""The figures of a load as a picture: SVG, without any library."""

from collections.abc import Iterator, Sequence
from html import escape

from torchrec_archiver.serving.load import Figures

WIDTH, GAP, LEFT, TOP = 280, 44, 64, 74
"""Of a panel: its width, what is between two, beside the first, and above all."""
HEIGHTS = (170, 150)
"""Of the panels of rows, and of those of milliseconds."""
BETWEEN = 58
BELOW = 66

INK, SOFT, LINE = "#1f2933", "#616e7c", "#e4e7eb"
BAR, P50, P99, BAD = "#2f6f9f", "#2f6f9f", "#d9822b", "#c0392b"
FONT = "font-family='system-ui, sans-serif'"


def draw(title: str, subtitle: str, figures: Sequence[Figures]) -> str:
    """Draw rows a second above latency, a column of panels for each size of requests.

    Args:
        title: what was loaded.
        subtitle: how.
        figures: of every load; at least one.
    """
    sizes = list(dict.fromkeys(one.rows for one in figures))
    width = LEFT + len(sizes) * (WIDTH + GAP)
    height = TOP + sum(HEIGHTS) + BETWEEN + BELOW
    most_rows = _round_up(max(one.rows_per_second for one in figures))
    most_ms = _round_up(max(one.p99_ms for one in figures))
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {FONT}",
        f"  viewBox='0 0 {width} {height}' width='{width}' height='{height}'>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        _text(LEFT, 26, title, size=16, weight=600),
        _text(LEFT, 46, subtitle, colour=SOFT),
        _text(LEFT, TOP - 6, "rows a second", colour=SOFT),
    ]
    below = TOP + HEIGHTS[0] + BETWEEN
    parts += _legend(LEFT, below - 14)
    for number, rows in enumerate(sizes):
        left = LEFT + number * (WIDTH + GAP)
        some = [one for one in figures if one.rows == rows]
        parts += _scale(left, TOP, HEIGHTS[0], most_rows, named=number == 0)
        parts += _bars(left, TOP, some, most_rows)
        parts += _scale(left, below, HEIGHTS[1], most_ms, named=number == 0)
        parts += _ranges(left, below, some, most_ms)
        foot = below + HEIGHTS[1]
        parts.append(_text(left + WIDTH / 2, foot + 34, "connections", colour=SOFT, at="middle"))
        parts.append(_text(left + WIDTH / 2, foot + 54, _rows(rows), at="middle", weight=600))
    return "\n".join([*parts, "</svg>", ""])


def _bars(left: float, top: float, some: Sequence[Figures], most: float) -> Iterator[str]:
    height = HEIGHTS[0]
    for middle, one in _places(left, some):
        tall = height * one.rows_per_second / most
        breadth = min(46.0, 0.6 * WIDTH / len(some))
        yield (
            f"<rect x='{middle - breadth / 2:.1f}' y='{top + height - tall:.1f}' "
            f"width='{breadth:.1f}' height='{tall:.1f}' fill='{BAR}'/>"
        )
        y = top + height - tall - 5
        yield _text(middle, y, f"{one.rows_per_second:,.0f}", at="middle", size=11)
        yield _text(middle, top + height + 16, str(one.connections), at="middle", size=11)
        if one.errors:
            bad = f"{one.errors:,} errors"
            yield _text(middle, top + height + 30, bad, at="middle", size=11, colour=BAD)


def _ranges(left: float, top: float, some: Sequence[Figures], most: float) -> Iterator[str]:
    height = HEIGHTS[1]
    for middle, one in _places(left, some):
        low, high = (top + height * (1 - ms / most) for ms in (one.p50_ms, one.p99_ms))
        yield (
            f"<line x1='{middle:.1f}' x2='{middle:.1f}' y1='{low:.1f}' y2='{high:.1f}' "
            f"stroke='{SOFT}' stroke-width='2'/>"
        )
        for y, colour in ((low, P50), (high, P99)):
            yield f"<circle cx='{middle:.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'/>"
        # Two numbers need room for two lines.
        apart = max(0.0, 13 - (low - high)) / 2
        yield _text(middle + 9, high + 4 - apart, _ms(one.p99_ms), size=11)
        yield _text(middle + 9, low + 4 + apart, _ms(one.p50_ms), size=11)
        yield _text(middle, top + height + 16, str(one.connections), at="middle", size=11)


def _places(left: float, some: Sequence[Figures]) -> Iterator[tuple[float, Figures]]:
    """The middle of each load's place in a panel."""
    step = WIDTH / len(some)
    for number, one in enumerate(some):
        yield left + step * (number + 0.5), one


def _scale(left: float, top: float, height: float, most: float, *, named: bool) -> Iterator[str]:
    for number in range(5):
        y = top + height * (1 - number / 4)
        colour = SOFT if number == 0 else LINE
        yield f"<line x1='{left}' x2='{left + WIDTH}' y1='{y}' y2='{y}' stroke='{colour}'/>"
        if named:
            value = most * number / 4
            yield _text(left - 8, y + 4, f"{value:,.10g}", at="end", size=11, colour=SOFT)


def _legend(x: float, y: float) -> Iterator[str]:
    yield _text(x, y, "milliseconds to an answer:", colour=SOFT)
    for offset, colour, name in ((176, P50, "p50"), (228, P99, "p99")):
        yield f"<circle cx='{x + offset}' cy='{y - 4}' r='4.5' fill='{colour}'/>"
        yield _text(x + offset + 9, y, name, colour=SOFT)


def _text(  # noqa: PLR0913  what a text is
    x: float,
    y: float,
    said: str,
    *,
    at: str = "start",
    size: int = 13,
    weight: int = 400,
    colour: str = INK,
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' "
        f"fill='{colour}' text-anchor='{at}'>{escape(said)}</text>"
    )


def _rows(rows: float) -> str:
    """How large requests are, in words."""
    return "requests of 1 row" if rows == 1 else f"requests of {rows:,.10g} rows"


def _ms(ms: float) -> str:
    return f"{ms:,.2f}" if ms < 10 else f"{ms:,.0f}"


def _round_up(value: float) -> float:
    """The next number that a scale of four steps can end with."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value > 0:
        power /= 10
    return next(power * step for step in (1, 2, 4, 6, 8, 10) if power * step >= value)
