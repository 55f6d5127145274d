"""Pictures as SVG, for a page or as files of their own; they need no style and no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from torchrec_archiver.report.render import render
from torchrec_archiver.report.words import plain

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#9d755d")
"""Of series; they can be told apart on white and on black."""
TOP = 26
"""Height of a line of the legend."""
LEGEND = 76
"""Width of one of its entries."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things stand in a picture."""

    name: str
    """The class that a page's style knows."""
    width: int
    labels: int
    """What stands left of the bars."""
    said: int
    """What stands right of them."""
    row: int
    """Height of a line."""
    bar: int
    """Where its bar begins, from its top."""
    letters: int
    """Of a label; a wide one reaches out of the picture."""
    scale: int
    """Lines of a logarithmic scale."""

    @property
    def room(self) -> int:
        """For the longest bar."""
        return self.width - self.labels - self.said


BROAD = Layout(name="broad", width=900, labels=200, said=100, row=22, bar=0, letters=25, scale=8)
NARROW = Layout(name="narrow", width=380, labels=12, said=84, row=42, bar=17, letters=48, scale=4)
"""For telephones: labels stand above their bars."""
LAYOUTS = (BROAD, NARROW)


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


def bars(
    lines: Sequence[Bar], title: str, series: Sequence[str] = (), layout: Layout = BROAD
) -> Markup:
    """Horizontal bars from 0 on, a line each.

    Args:
        lines: from the top.
        title: for whoever cannot see it.
        series: names of the values, where there are several.
        layout: where things stand.
    """
    largest = max((sum(line.values) for line in lines), default=0.0) or 1.0
    in_a_line = max(layout.room // LEGEND, 1)
    top = -(-len(series) // in_a_line) * TOP
    drawn = []
    for at, line in enumerate(lines):
        parts, x = [], float(layout.labels)
        for value, colour in zip(line.values, _colours(len(line.values)), strict=True):
            width = value / largest * layout.room
            parts.append((f"{x:.1f}", f"{max(width, 0.5 if value else 0.0):.1f}", colour))
            x += width
        label, whole = _labels(line.label, layout)
        y, end = top + at * layout.row, f"{x + 6:.1f}"
        drawn.append((y, label, whole, plain(line.said), parts, end))
    legend = [
        (layout.labels + at % in_a_line * LEGEND, at // in_a_line * TOP, plain(name), colour)
        for at, (name, colour) in enumerate(zip(series, _colours(len(series)), strict=True))
    ]
    return render(
        "bars.svg",
        title=plain(title),
        layout=layout,
        height=top + len(lines) * layout.row + 4,
        lines=drawn,
        legend=legend,
    )


def ranges(
    lines: Sequence[Range], title: str, low: str, high: str, layout: Layout = BROAD
) -> Markup:
    """Ranges on a logarithmic scale, a line each; what is 0 has no place on it.

    Args:
        lines: from the top.
        title: for whoever cannot see it.
        low: what the lower ends are.
        high: what the higher ends are.
        layout: where things stand.
    """
    found = [value for line in lines for value in (line.low, line.high) if value > 0]
    first = math.floor(math.log10(min(found, default=1.0)))
    last = max(math.ceil(math.log10(max(found, default=1.0))), first + 1)

    def place(value: float) -> str | None:
        if value <= 0:
            return None
        return f"{layout.labels + (math.log10(value) - first) / (last - first) * layout.room:.1f}"

    step = -(-(last - first) // layout.scale)
    decades = range(first, last + 1, step)
    drawn = []
    for at, line in enumerate(lines):
        label, whole = _labels(line.label, layout)
        ends = place(line.low), place(line.high)
        drawn.append((TOP + at * layout.row, label, whole, plain(line.said), *ends))
    return render(
        "ranges.svg",
        title=plain(title),
        layout=layout,
        height=TOP + len(lines) * layout.row + 20,
        right=layout.width - layout.said + 12,
        bottom=TOP + len(lines) * layout.row,
        lines=drawn,
        scale=[(f"1e{decade}", place(10.0**decade) or f"{layout.labels}") for decade in decades],
        legend=(plain(low), plain(high)),
        colour=COLOURS[0],
    )


def _colours(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]


def _labels(label: str, layout: Layout) -> tuple[str, str]:
    """The label as there is room for it, and as it is."""
    whole = plain(label)
    return whole if len(whole) <= layout.letters else f"{whole[: layout.letters - 1]}…", whole
