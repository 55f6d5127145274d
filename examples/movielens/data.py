"""Ratings as rows: splits them by time and makes the features, knowing only the training part.

Shapes: B ratings, F sparse and D dense features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from examples.movielens.files import Catalogue, Ratings, read_catalogue, read_ratings
from examples.movielens.rows import Bags, Rows, take_bags

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARSE_FEATURES = ("user_id", "age", "gender", "occupation", "movie_id", "genres", "hour")
DENSE_FEATURES = (
    "user_mean",
    "user_count",
    "movie_mean",
    "movie_count",
    "release_year",
    "scaled_age",
)
"""No name is a sparse feature's too, so that a request can give every feature by its name."""

TEST_SHARE = 5
"""One in so many of each user's ratings, the last ones, is in the test set."""

MEAN_PRIOR = 5.0
"""How many ratings at the global mean every mean is smoothed with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Training and test part of one split, with features that know only the training part."""

    catalogue: Catalogue
    train_ratings: Ratings
    test_ratings: Ratings

    @property
    def mean_rating(self) -> float:
        """The mean over all ratings of the training part."""
        return float(self.train_ratings.rating.mean())

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """[F], one more than the largest id of each sparse feature."""
        catalogue = self.catalogue
        largest = {
            "user_id": len(catalogue.age) - 1,
            "age": int(catalogue.age.max()),
            "gender": int(catalogue.gender.max()),
            "occupation": int(catalogue.occupation.max()),
            "movie_id": len(catalogue.release_year) - 1,
            "genres": int(catalogue.genre_values.max()),
            "hour": 23,
        }
        return tuple(largest[name] + 1 for name in SPARSE_FEATURES)

    @property
    def _rest(self) -> NDArray[np.float64]:
        """[B], the ratings of the training part less their mean."""
        return self.train_ratings.rating.astype(np.float64) - self.mean_rating

    def train(self) -> Rows:
        """Return the training rows; their means and counts hold only earlier ratings.

        A row that saw its own rating, or a model that could subtract a leave-one-out mean from
        the user's embedding, would learn to read the label from the features.
        """
        ratings = self.train_ratings
        return self._rows(
            ratings,
            user_history=_earlier(ratings.user, self._rest, ratings.timestamp),
            movie_history=_earlier(ratings.movie, self._rest, ratings.timestamp),
        )

    def test(self) -> Rows:
        """Return the test rows; their means and counts are those of the training part."""
        return self.rows(self.test_ratings)

    def rows(self, ratings: Ratings) -> Rows:
        """Return rows for any users and movies, as they look at the end of the training part."""
        train = self.train_ratings
        user_sum, user_count = totals(train.user, self._rest, len(self.catalogue.age))
        movie_sum, movie_count = totals(train.movie, self._rest, len(self.catalogue.release_year))
        return self._rows(
            ratings,
            user_history=(user_sum[ratings.user], user_count[ratings.user]),
            movie_history=(movie_sum[ratings.movie], movie_count[ratings.movie]),
        )

    def _rows(
        self,
        ratings: Ratings,
        *,
        user_history: tuple[NDArray[np.float64], NDArray[np.int64]],
        movie_history: tuple[NDArray[np.float64], NDArray[np.int64]],
    ) -> Rows:
        catalogue, user, movie = self.catalogue, ratings.user, ratings.movie
        dense = (
            *_mean_and_count(*user_history),
            *_mean_and_count(*movie_history),
            (catalogue.release_year[movie] - 1990) / 10,
            (catalogue.age[user] - 35) / 15,
        )
        bags = Bags.join(
            [
                user,
                catalogue.age[user],
                catalogue.gender[user],
                catalogue.occupation[user],
                movie,
                genres(catalogue, movie),
                ratings.timestamp // 3600 % 24,
            ]
        )
        return Rows(
            lengths=bags.lengths,
            values=bags.values,
            dense=np.stack(dense, axis=1).astype(np.float32),
            label=ratings.click.astype(np.float32),
        )


def load() -> Dataset:
    """Read MovieLens-100k and split it.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    return split(read_ratings(), read_catalogue())


def split(ratings: Ratings, catalogue: Catalogue) -> Dataset:
    """Put the ratings that `in_test` names into the test part, all others into the training one."""
    test = in_test(ratings)
    return Dataset(
        catalogue=catalogue,
        train_ratings=ratings.take(~test),
        test_ratings=ratings.take(test),
    )


def in_test(ratings: Ratings) -> NDArray[np.bool_]:
    """Say [B] which ratings are in the last fifth in time, rounded down, of those of their user."""
    count = np.bincount(ratings.user)
    position = np.arange(len(ratings.user)) - (np.cumsum(count) - count)[ratings.user]
    test: NDArray[np.bool_] = position >= (count - count // TEST_SHARE)[ratings.user]
    return test


def genres(catalogue: Catalogue, movie: NDArray[np.int64]) -> Bags:
    """Return the genres of movies [B], as one feature."""
    lengths = catalogue.genre_lengths
    taken = lengths[movie].astype(np.int32)
    return Bags(
        lengths=taken.reshape(1, -1),
        values=take_bags(catalogue.genre_values, (np.cumsum(lengths) - lengths)[movie], taken),
    )


def totals(
    key: NDArray[np.int64], value: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sum of the values [size] and their number [size] for each key below `size`."""
    total = np.bincount(key, value, minlength=size).astype(np.float64, copy=False)
    return total, np.bincount(key, minlength=size)


def _earlier(
    key: NDArray[np.int64], value: NDArray[np.float64], timestamp: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return for each row [B] the sum and number of values with its key and an earlier time.

    Rows of one key and one second count as in the order given.
    """
    order = np.lexsort((timestamp, key))
    before = np.cumsum(value[order]) - value[order]
    _, start, count = np.unique(key[order], return_index=True, return_counts=True)
    start = np.repeat(start, count)
    total, number = np.empty(len(key)), np.empty(len(key), dtype=np.int64)
    total[order] = before - before[start]
    number[order] = np.arange(len(key)) - start
    return total, number


def _mean_and_count(
    total: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smoothed mean and the count on a logarithmic scale of about 0 to 1."""
    return total / (count + MEAN_PRIOR), np.log1p(count) / 6
