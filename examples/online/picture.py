"""AUC over time as a picture: SVG, without any library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrec_archiver.serving.picture import LINE, SOFT, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WIDTH, HEIGHT = 720, 260
LEFT, TOP, RIGHT, BELOW = 64, 84, 150, 56
STEP = 0.02
"""Between two lines of AUC."""
COLOURS = ("#2f6f9f", "#d9822b")


def draw(
    title: str, how: str, seconds: Sequence[float], lines: Mapping[str, Sequence[float]]
) -> str:
    """Draw a line of AUC for each name.

    Args:
        title: what is shown.
        how: it was measured.
        seconds: when, [T].
        lines: name -> AUC [T]; two at most.
    """
    values = [value for line in lines.values() for value in line]
    low = STEP * int(min(values) / STEP)
    high = STEP * (int(max(values) / STEP) + 1)
    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW
    last = max(seconds)

    def x(second: float) -> float:
        return LEFT + WIDTH * second / last

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    def grid() -> Iterator[str]:
        for step in range(round((high - low) / STEP) + 1):
            value = low + step * STEP
            yield (
                f"<line x1='{LEFT}' x2='{LEFT + WIDTH}' y1='{y(value):.1f}' y2='{y(value):.1f}' "
                f"stroke='{LINE}'/>"
            )
            yield text(LEFT - 8, y(value) + 4, f"{value:.2f}", at="end", colour=SOFT)
        for part in range(5):
            second = last * part / 4
            yield text(x(second), TOP + HEIGHT + 20, f"{second:.0f}", at="middle", colour=SOFT)

    parts = [
        "<svg xmlns='http://www.w3.org/2000/svg' font-family='system-ui, sans-serif'",
        f"  viewBox='0 0 {width} {height}' width='{width}' height='{height}'>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        text(20, 32, title, size=17, weight=600),
        text(20, 54, how, colour=SOFT),
        text(LEFT - 44, TOP - 12, "AUC", colour=SOFT),
        *grid(),
        text(LEFT + WIDTH / 2, TOP + HEIGHT + 42, "seconds", at="middle", colour=SOFT),
    ]
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        points = " ".join(
            f"{x(second):.1f},{y(value):.1f}" for second, value in zip(seconds, line, strict=True)
        )
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>"
        )
        parts.append(text(LEFT + WIDTH + 10, y(line[-1]) + 4, name, colour=colour, weight=600))
    return "\n".join([*parts, "</svg>", ""])
