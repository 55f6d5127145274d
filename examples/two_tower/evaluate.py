"""Measures retrieval for all users, by embeddings from a running server."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.movielens.data import load
from examples.movielens.files import DatasetMissingError
from examples.two_tower.embed import EmbedError, embed_movies, embed_users
from examples.two_tower.recall import Recall, measure
from examples.two_tower.search import FOUND, most_popular, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence


def evaluate(server: str) -> dict[str, Recall]:
    """Return the figures of popularity and of the served embeddings.

    Raises:
        EmbedError: no server, or no embeddings in its answer.
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    dataset = load()
    user = np.unique(dataset.test_ratings.user)
    found = nearest(
        dataset, user, embed_users(server, dataset, user), embed_movies(server, dataset)
    )
    return {
        "popularity": measure(dataset, user, most_popular(dataset, user).movie),
        "served towers": measure(dataset, user, found.movie),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.two_tower.evaluate", description=__doc__
    )
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    options = parser.parse_args(arguments)
    try:
        figures = evaluate(options.server)
    except (DatasetMissingError, EmbedError) as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    table = Table()
    table.add_column("")
    table.add_column(f"recall@{FOUND}", justify="right")
    table.add_column(f"hit rate@{FOUND}", justify="right")
    for name, figure in figures.items():
        table.add_row(name, f"{figure.recall:.4f}", f"{figure.hit_rate:.4f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
