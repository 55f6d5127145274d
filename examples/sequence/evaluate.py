"""Measures how often a running server finds the movie that came next, over the whole test part."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from examples.movielens.files import DatasetMissingError, read_ratings
from examples.sequence.data import hit_rate, most_popular, steps_to_test
from examples.sequence.find import FindError, find

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS_PER_REQUEST = 500


def evaluate(server: str) -> tuple[int, dict[str, float]]:
    """Return how many movies an answer holds, and the hit rates of popularity and of the model.

    Raises:
        FindError: no server, or no movies in its answer.
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    ratings = read_ratings()
    steps = steps_to_test(ratings)
    starts = range(0, len(steps), ROWS_PER_REQUEST)
    requests = [slice(start, start + ROWS_PER_REQUEST) for start in starts]
    # None shows the bar on a terminal only.
    found = np.concatenate(
        [
            find(server, steps.history.take(rows)).movie
            for rows in tqdm(requests, unit="request", disable=None)
        ]
    )
    count = found.shape[1]
    return count, {
        "popularity": hit_rate(most_popular(ratings, steps, count), steps),
        "served model": hit_rate(found, steps),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sequence.evaluate", description=__doc__
    )
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    options = parser.parse_args(arguments)
    try:
        count, figures = evaluate(options.server)
    except (DatasetMissingError, FindError) as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    table = Table()
    table.add_column("")
    table.add_column(f"hit rate@{count}", justify="right")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:.4f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
