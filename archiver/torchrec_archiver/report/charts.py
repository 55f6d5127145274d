"""Pictures as SVG, for a page or as files of their own; they need no style and no script."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from torchrec_archiver.report.render import render
from torchrec_archiver.report.words import plain

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#9d755d")
"""Of series; they can be told apart on white and on black."""
WIDTH, LABELS, SAID = 900, 200, 100
"""Of a picture, what stands left of its bars, and right of them."""
ROW, TOP = 22, 26
"""Heights."""
MOST_LETTERS = 25
"""Of a label; a wide one reaches out of the picture."""
MOST_LINES = 8
"""Of a logarithmic scale."""


class Bar(NamedTuple):
    """A line of a bar chart."""

    label: str
    values: tuple[float, ...]
    """Of each series, 0 or more; drawn one behind another."""
    said: str
    """The number as people read it."""


class Range(NamedTuple):
    """A line of a chart of ranges."""

    label: str
    low: float
    high: float
    """0 or more, and not below `low`."""
    said: str


def bars(lines: Sequence[Bar], title: str, series: Sequence[str] = ()) -> Markup:
    """Horizontal bars from 0 on, a line each.

    Args:
        lines: from the top.
        title: for whoever cannot see it.
        series: names of the values, where there are several.
    """
    largest = max((sum(line.values) for line in lines), default=0.0) or 1.0
    room = WIDTH - LABELS - SAID
    top = TOP if series else 0
    drawn = []
    for at, line in enumerate(lines):
        parts, x = [], float(LABELS)
        for value, colour in zip(line.values, _colours(len(line.values)), strict=True):
            width = value / largest * room
            parts.append((f"{x:.1f}", f"{max(width, 0.5 if value else 0.0):.1f}", colour))
            x += width
        drawn.append(
            (top + at * ROW, *_labels(line.label), plain(line.said), parts, f"{x + 6:.1f}")
        )
    return render(
        "bars.svg",
        title=plain(title),
        width=WIDTH,
        height=top + len(lines) * ROW + 4,
        labels=LABELS,
        lines=drawn,
        legend=list(zip(map(plain, series), _colours(len(series)), strict=True)),
    )


def ranges(lines: Sequence[Range], title: str, low: str, high: str) -> Markup:
    """Ranges on a logarithmic scale, a line each; what is 0 has no place on it.

    Args:
        lines: from the top.
        title: for whoever cannot see it.
        low: what the lower ends are.
        high: what the higher ends are.
    """
    found = [value for line in lines for value in (line.low, line.high) if value > 0]
    first = math.floor(math.log10(min(found, default=1.0)))
    last = max(math.ceil(math.log10(max(found, default=1.0))), first + 1)
    room = WIDTH - LABELS - SAID

    def place(value: float) -> str | None:
        if value <= 0:
            return None
        return f"{LABELS + (math.log10(value) - first) / (last - first) * room:.1f}"

    step = -(-(last - first) // MOST_LINES)
    decades = range(first, last + 1, step)
    drawn = [
        (TOP + at * ROW, *_labels(line.label), plain(line.said), place(line.low), place(line.high))
        for at, line in enumerate(lines)
    ]
    return render(
        "ranges.svg",
        title=plain(title),
        width=WIDTH,
        height=TOP + len(lines) * ROW + 20,
        labels=LABELS,
        right=WIDTH - SAID + 12,
        bottom=TOP + len(lines) * ROW,
        lines=drawn,
        scale=[(f"1e{decade}", place(10.0**decade) or f"{LABELS}") for decade in decades],
        legend=(plain(low), plain(high)),
        colour=COLOURS[0],
    )


def _colours(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]


def _labels(label: str) -> tuple[str, str]:
    """The label as there is room for it, and as it is."""
    whole = plain(label)
    return whole if len(whole) <= MOST_LETTERS else f"{whole[: MOST_LETTERS - 1]}…", whole
