"""Ratings in the order of their time: the first half is known, the second arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from examples.movielens.data import Dataset
from examples.movielens.files import read_catalogue, read_ratings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.movielens.rows import Rows

KNOWN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """What is known when the archive is built, and what comes afterwards."""

    known: Dataset
    """Its training part is the first half."""
    later: Rows
    """The second half, by time; means and counts of a row hold the ratings before it."""

    def chunks(self, rows: int) -> Iterator[Rows]:
        """Yield what arrives together, `rows` of them each time."""
        for start in range(0, len(self.later), rows):
            yield self.later.take(np.arange(start, min(start + rows, len(self.later))))


def load() -> Stream:
    """Read MovieLens-100k and order it by time.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    ratings, catalogue = read_ratings(), read_catalogue()
    ratings = ratings.take(np.argsort(ratings.timestamp, kind="stable"))
    is_known = np.arange(len(ratings.user)) < KNOWN_SHARE * len(ratings.user)
    later = ratings.take(~is_known)
    all_of_it = Dataset(catalogue=catalogue, train_ratings=ratings, test_ratings=later)
    return Stream(
        known=Dataset(
            catalogue=catalogue, train_ratings=ratings.take(is_known), test_ratings=later
        ),
        later=all_of_it.train().take(np.flatnonzero(~is_known)),
    )
