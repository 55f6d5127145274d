"""What a user saw before, newest first, for models that read it as a feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from examples.movielens.rows import Bags, take_bags

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.files import Ratings


def before(ratings: Ratings, index: NDArray[np.int64], most: int | None = None) -> Bags:
    """Return for ratings [B] the movies that their user rated before, newest first.

    Ratings of one second count as in the order given.

    Args:
        ratings: by user and then by time.
        index: which of them, [B] positions.
        most: how many movies of a longer history to keep, all when not given.
    """
    return _newest_first(ratings, ratings.user[index], index, most)


def after_all(ratings: Ratings, user: NDArray[np.int64], most: int | None = None) -> Bags:
    """Return for each user [B] all movies that the user rated, newest first.

    Args:
        ratings: by user and then by time.
        user: ids.
        most: how many movies of a longer history to keep, all when not given.
    """
    ends = np.searchsorted(ratings.user, user, side="right")
    return _newest_first(ratings, user, ends, most)


def _newest_first(
    ratings: Ratings, user: NDArray[np.int64], ends: NDArray[np.int64], most: int | None
) -> Bags:
    lengths = ends - np.searchsorted(ratings.user, user)
    if most is not None:
        lengths = np.minimum(lengths, most)
    lengths = lengths.astype(np.int32)
    backwards = ratings.movie[::-1].astype(np.int32)
    return Bags(
        lengths=lengths.reshape(1, -1),
        values=take_bags(backwards, len(backwards) - ends, lengths),
    )
