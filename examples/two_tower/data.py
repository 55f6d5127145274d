"""Features of users and movies, and which movies a user went on to like.

Shapes: B rows, U users, M movies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from examples.movielens.data import Dataset, genres
from examples.movielens.history import after_all, before
from examples.movielens.rows import Bags
from examples.two_tower.model import TowerConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.files import Catalogue, Ratings

USER_FEATURES = ("user_id", "age", "gender", "occupation", "history")
ITEM_FEATURES = ("movie_id", "genres", "decade")

HISTORY_MOVIES = 20
"""`history` holds the last so many movies that the user liked."""


def user_config(catalogue: Catalogue) -> TowerConfig:
    """Size the user tower's tables to the data."""
    columns = (catalogue.age, catalogue.gender, catalogue.occupation)
    largest = [len(catalogue.age) - 1, *(int(column.max()) for column in columns)]
    return TowerConfig(
        features=USER_FEATURES,
        rows_per_table=(*(id_ + 1 for id_ in largest), len(catalogue.release_year)),
    )


def item_config(catalogue: Catalogue) -> TowerConfig:
    """Size the item tower's tables to the data."""
    return TowerConfig(
        features=ITEM_FEATURES,
        rows_per_table=(
            len(catalogue.release_year),
            int(catalogue.genre_values.max()) + 1,
            int(_decade(catalogue).max()) + 1,
        ),
    )


def training_rows(dataset: Dataset) -> tuple[Bags, NDArray[np.int64]]:
    """Return users [B] as they were when they liked a movie of the training part, and the movie.

    Their histories hold only what they liked before.
    """
    ratings = liked(dataset.train_ratings)
    history = before(ratings, np.arange(len(ratings.user)), HISTORY_MOVIES)
    return _users(dataset.catalogue, ratings.user, history), ratings.movie


def users(dataset: Dataset, user: NDArray[np.int64]) -> Bags:
    """Return users [B] as they are at the end of the training part."""
    history = after_all(liked(dataset.train_ratings), user, HISTORY_MOVIES)
    return _users(dataset.catalogue, user, history)


def items(catalogue: Catalogue, movie: NDArray[np.int64]) -> Bags:
    """Return movies [B]."""
    return Bags.join([movie, genres(catalogue, movie), _decade(catalogue)[movie]])


def movies(catalogue: Catalogue) -> NDArray[np.int64]:
    """Return the ids of all movies, [M]."""
    return np.fromiter(catalogue.titles, dtype=np.int64)


def liked(ratings: Ratings) -> Ratings:
    """Return the ratings of 4 and 5."""
    return ratings.take(ratings.click)


def pairs(catalogue: Catalogue, ratings: Ratings) -> NDArray[np.bool_]:
    """Say of each user and movie id whether the pair is among the ratings."""
    among = np.zeros((len(catalogue.age), len(catalogue.release_year)), dtype=np.bool_)
    among[ratings.user, ratings.movie] = True
    return among


def _users(catalogue: Catalogue, user: NDArray[np.int64], history: Bags) -> Bags:
    columns = (catalogue.age, catalogue.gender, catalogue.occupation)
    return Bags.join([user, *(column[user] for column in columns), history])


def _decade(catalogue: Catalogue) -> NDArray[np.int64]:
    decade: NDArray[np.int64] = np.maximum(catalogue.release_year - 1920, 0) // 10
    return decade
