"""Draws rows a second against p99 for all servers; runs in an environment that has matplotlib."""

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

PANELS = ((1, "single rows"), (100, "requests of 100 rows"), (1000, "requests of 1,000 rows"))
OURS = "this project"


def main() -> None:
    """Draw the results named first into the file named second."""
    servers = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["servers"]
    mpl.rcParams.update({"svg.hashsalt": "servers", "font.size": 8, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 5.2), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    number = 0
    for server in servers:
        for name in dict.fromkeys(point["format"] for point in server["points"]):
            ours = server["title"].startswith(OURS)
            for axis, (rows, title) in zip(axes, PANELS, strict=True):
                points = [
                    point
                    for point in server["points"]
                    if point["format"] == name and point["rows"] == rows
                ]
                axis.plot(
                    [point["p99_ms"] for point in points],
                    [point["rows_per_second"] for point in points],
                    marker="o" if ours else "s",
                    markersize=4 if ours else 2.5,
                    linewidth=2 if ours else 0.9,
                    color=colours[number % len(colours)],
                    label=f"{server['title']}, {name}",
                )
                axis.set(xscale="log", yscale="log", title=title, xlabel="p99, ms")
                axis.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
            number += 1
    axes[0].set_ylabel("rows a second")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    target = Path(sys.argv[2])
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
