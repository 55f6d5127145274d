"""Histories and the movies that came next, and how often those are found.

Shapes: B rows, K movies found for each, M ids of movies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from examples.movielens.data import in_test
from examples.movielens.history import before

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.files import Ratings
    from examples.movielens.rows import Bags


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """Ratings as steps of a sequence."""

    history: Bags
    """[1, B] bags, the movies that the user rated before, newest first."""

    movie: NDArray[np.int64]
    """[B], the movie that came next."""

    def __len__(self) -> int:
        """Return B."""
        return len(self.movie)


def steps_to_train(ratings: Ratings, most: int) -> Steps:
    """Return a step for each rating of the training part, its history cut to `most` movies."""
    return _steps(ratings, np.flatnonzero(~in_test(ratings)), most)


def steps_to_test(ratings: Ratings) -> Steps:
    """Return a step for each rating of the test part, with the whole history before it."""
    return _steps(ratings, np.flatnonzero(in_test(ratings)), None)


def hit_rate(found: NDArray[np.int64], steps: Steps) -> float:
    """Return how often the movie that came next is among those found [B, K]."""
    return float((found == steps.movie[:, None]).any(axis=1).mean())


def most_popular(ratings: Ratings, steps: Steps, count: int) -> NDArray[np.int64]:
    """Find by the number of training ratings; a movie of the history is never found.

    Returns:
        [B, count] ids.
    """
    trained = ratings.movie[~in_test(ratings)]
    ids = np.argsort(-np.bincount(trained), kind="stable")
    # A history hides at most so many of the first.
    first = ids[: count + int(steps.history.lengths.max())]
    hidden = np.zeros((len(steps), ratings.movie.max() + 1), dtype=np.bool_)
    hidden[np.repeat(np.arange(len(steps)), steps.history.lengths[0]), steps.history.values] = True
    order = np.argsort(hidden[:, first], axis=1, kind="stable")[:, :count]
    return first[order]


def _steps(ratings: Ratings, index: NDArray[np.int64], most: int | None) -> Steps:
    return Steps(history=before(ratings, index, most), movie=ratings.movie[index])
