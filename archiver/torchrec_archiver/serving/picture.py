"""The figures of a load as a picture: SVG, without any library."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from torchrec_archiver.serving.load import Figures

WIDTH, GAP, LEFT, TOP = 250, 74, 74, 112
"""Of a panel: its width, what is between two, beside the first, and above all."""
ROWS_HEIGHT, MS_HEIGHT = 170, 150
BETWEEN, BELOW = 76, 48
NARROWEST = 600
"""That the lines above have room."""

INK, SOFT, LINE = "#1f2933", "#616e7c", "#e4e7eb"
P50, P99, BAD = "#2f6f9f", "#d9822b", "#c0392b"


def draw(title: str, how: str, figures: Sequence[Figures]) -> str:
    """Draw rows a second above latency, a column of panels for each size of requests.

    Rows are drawn from 0 on, each panel to its own scale; milliseconds to one scale for all, with
    equal steps for equal factors.

    Args:
        title: what was loaded.
        how: in which way.
        figures: of every load; at least one.
    """
    sizes = list(dict.fromkeys(one.rows for one in figures))
    width = max(NARROWEST, LEFT + len(sizes) * (WIDTH + GAP))
    height = TOP + ROWS_HEIGHT + BETWEEN + MS_HEIGHT + BELOW
    below = TOP + ROWS_HEIGHT + BETWEEN
    ms = _decades(figures)
    parts = [
        "<svg xmlns='http://www.w3.org/2000/svg' font-family='system-ui, sans-serif'",
        f"  viewBox='0 0 {width} {height}' width='{width}' height='{height}'>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        text(20, 32, title, size=17, weight=600),
        text(20, 54, f"{how}; by connections, each with one request at a time", colour=SOFT),
        text(20, TOP - 14, "rows/s", colour=SOFT),
        text(20, below - 14, "ms", colour=SOFT),
        *_legend(LEFT, below - 14),
    ]
    for number, rows in enumerate(sizes):
        left = LEFT + number * (WIDTH + GAP)
        some = [one for one in figures if one.rows == rows]
        most = _round_up(max(one.rows_per_second for one in some))
        heading = "1 row a request" if rows == 1 else f"{rows:,.10g} rows a request"
        parts.append(text(left, TOP - 14, heading, weight=600))
        parts += _lines(left, TOP, {most * step / 4: step / 4 for step in range(5)}, ROWS_HEIGHT)
        parts += _bars(left, some, most)
        parts += _lines(left, below, ms, MS_HEIGHT)
        parts += _ranges(left, below, some, ms)
        foot = below + MS_HEIGHT + 36
        parts.append(text(left + WIDTH / 2, foot, "connections", colour=SOFT, at="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _bars(left: float, some: Sequence[Figures], most: float) -> Iterator[str]:
    foot = TOP + ROWS_HEIGHT
    breadth = min(46.0, 0.6 * WIDTH / len(some))
    for middle, one in _places(left, some):
        tall = ROWS_HEIGHT * one.rows_per_second / most
        yield (
            f"<rect x='{middle - breadth / 2:.1f}' y='{foot - tall:.1f}' "
            f"width='{breadth:.1f}' height='{tall:.1f}' fill='{P50}'/>"
        )
        said = f"{one.rows_per_second:,.0f}"
        yield text(middle, foot - tall - 5, said, at="middle", size=12)
        yield text(middle, foot + 17, str(one.connections), at="middle", size=12)
        if one.errors:
            said = f"{one.errors:,} errors"
            yield text(middle, foot + 33, said, at="middle", size=12, colour=BAD)


def _ranges(
    left: float, top: float, some: Sequence[Figures], scale: Mapping[float, float]
) -> Iterator[str]:
    least, *_, most = (math.log10(value) for value in scale)
    for middle, one in _places(left, some):
        low, high = (
            top + MS_HEIGHT * (most - math.log10(max(value, 10**least))) / (most - least)
            for value in (one.p50_ms, one.p99_ms)
        )
        yield (
            f"<line x1='{middle:.1f}' x2='{middle:.1f}' y1='{low:.1f}' y2='{high:.1f}' "
            f"stroke='{SOFT}' stroke-width='2'/>"
        )
        # Two numbers need the room of two lines.
        apart = max(0.0, 14 - (low - high)) / 2
        for y, shift, value, colour in (
            (low, apart, one.p50_ms, P50),
            (high, -apart, one.p99_ms, P99),
        ):
            yield f"<circle cx='{middle:.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'/>"
            said = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
            yield text(middle + 9, y + 4 + shift, said, size=12)
        foot = top + MS_HEIGHT + 17
        yield text(middle, foot, str(one.connections), at="middle", size=12)


def _places(left: float, some: Sequence[Figures]) -> Iterator[tuple[float, Figures]]:
    """The middle of each load's place in a panel."""
    step = WIDTH / len(some)
    for number, one in enumerate(some):
        yield left + step * (number + 0.5), one


def _lines(left: float, top: float, scale: Mapping[float, float], height: float) -> Iterator[str]:
    """Lines across a panel, each beside its value."""
    for value, share in scale.items():
        y = top + height * (1 - share)
        colour = LINE if share else SOFT
        yield f"<line x1='{left}' x2='{left + WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='{colour}'/>"
        yield text(left - 8, y + 4, f"{value:,.10g}", at="end", size=12, colour=SOFT)


def _legend(x: float, y: float) -> Iterator[str]:
    for offset, colour, name in ((0, P50, "p50"), (56, P99, "p99")):
        yield f"<circle cx='{x + offset + 5}' cy='{y - 4}' r='4.5' fill='{colour}'/>"
        yield text(x + offset + 15, y, name, colour=SOFT)


def text(  # noqa: PLR0913  what a text is
    x: float,
    y: float,
    said: str,
    *,
    at: str = "start",
    size: int = 13,
    weight: int = 400,
    colour: str = INK,
) -> str:
    """A line of text: where it begins, ends or has its middle, by `at`."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' "
        f"fill='{colour}' text-anchor='{at}'>{escape(said)}</text>"
    )


def _decades(figures: Sequence[Figures]) -> dict[float, float]:
    """The powers of ten around all latencies, with the share of the height where each lies."""
    low = math.floor(math.log10(min(one.p50_ms for one in figures)))
    high = max(low + 1, math.ceil(math.log10(max(one.p99_ms for one in figures))))
    return {10.0**power: (power - low) / (high - low) for power in range(low, high + 1)}


def _round_up(value: float) -> float:
    """The next number that a scale of four steps can end with."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 6, 8, 10) if power * step >= value)
