"""The figures by which ways to find movies are compared: recall and hit rate.

Shapes: U users, K movies found for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from examples.two_tower.data import liked, pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Means over the users who like a movie of the test part."""

    recall: float
    """The share of the movies they like that was found."""

    hit_rate: float
    """The share of these users for whom at least one was found."""


def measure(dataset: Dataset, user: NDArray[np.int64], found: NDArray[np.int64]) -> Recall:
    """Compare the movies found [U, K] for users [U] with those that they like in the test part."""
    relevant = pairs(dataset.catalogue, liked(dataset.test_ratings))[user]
    hits = np.take_along_axis(relevant, found, axis=1).sum(axis=1)
    total = relevant.sum(axis=1)
    asked = total > 0
    return Recall(
        recall=float((hits[asked] / total[asked]).mean()),
        hit_rate=float((hits[asked] > 0).mean()),
    )
