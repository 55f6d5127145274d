"""Asks a running server which movies a real user rates next."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.movielens.data import load
from examples.movielens.files import DatasetMissingError
from examples.movielens.history import after_all
from examples.sequence.find import FindError, find

if TYPE_CHECKING:
    from collections.abc import Sequence


def recommend(server: str, user: int) -> Table:
    """Return the table of the movies that most probably come next.

    Raises:
        FindError: no server, or no movies in its answer.
        DatasetMissingError: when the `recbole` wheel is not installed.
        ValueError: when there is no such user.
    """
    dataset = load()
    users = len(dataset.catalogue.age) - 1
    if not 1 <= user <= users:
        message = f"--user: received {user}, expected a user of MovieLens-100k, 1 to {users}"
        raise ValueError(message)
    found = find(server, after_all(dataset.train_ratings, np.array([user])))
    next_movies = dataset.test_ratings.movie[dataset.test_ratings.user == user].tolist()
    table = Table(title=f"The next movies of user {user}")
    table.add_column("movie")
    table.add_column("probability", justify="right")
    table.add_column("came as", justify="right")
    for movie, score in zip(found.movie[0].tolist(), found.score[0].tolist(), strict=True):
        came_as = str(next_movies.index(movie) + 1) if movie in next_movies else ""
        table.add_row(dataset.catalogue.titles[movie], f"{score:.4f}", came_as)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sequence.recommend", description=__doc__
    )
    parser.add_argument("--user", type=int, default=42)
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    options = parser.parse_args(arguments)
    try:
        table = recommend(options.server, options.user)
    except (DatasetMissingError, FindError, ValueError) as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
