"""Finds the ten movies nearest to a real user, by embeddings from a running server."""

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
from examples.two_tower.search import FOUND, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence


def recommend(server: str, user: int) -> Table:
    """Return the table of the best movies for a user.

    Raises:
        EmbedError: no server, or no embeddings in its answer.
        DatasetMissingError: when the `recbole` wheel is not installed.
        ValueError: when there is no such user.
    """
    dataset = load()
    users = len(dataset.catalogue.age) - 1
    if not 1 <= user <= users:
        message = f"--user: received {user}, expected a user of MovieLens-100k, 1 to {users}"
        raise ValueError(message)
    ids = np.array([user])
    found = nearest(dataset, ids, embed_users(server, dataset, ids), embed_movies(server, dataset))
    test = dataset.test_ratings.take(dataset.test_ratings.user == user)
    rated = dict(zip(test.movie.tolist(), test.rating.tolist(), strict=True))
    table = Table(title=f"The best {FOUND} movies for user {user}")
    table.add_column("movie")
    table.add_column("cosine", justify="right")
    table.add_column("rated later", justify="right")
    for movie, score in zip(found.movie[0].tolist(), found.score[0].tolist(), strict=True):
        title = dataset.catalogue.titles[movie]
        table.add_row(title, f"{score:.3f}", str(rated.get(movie, "")))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.two_tower.recommend", description=__doc__
    )
    parser.add_argument("--user", type=int, default=42)
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    options = parser.parse_args(arguments)
    try:
        table = recommend(options.server, options.user)
    except (DatasetMissingError, EmbedError, ValueError) as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
