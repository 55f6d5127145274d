"""The measure."""

from dataclasses import replace

import numpy as np

from examples.movielens.data import Dataset
from examples.movielens.files import Ratings
from examples.two_tower.recall import Recall, measure


def test_users_who_like_nothing_of_the_test_part_are_left_out(dataset: Dataset) -> None:
    """User 1 likes 10 and 11, of which one is found; 2 likes 12, not found; 3 nothing."""
    test = Ratings(
        user=np.array([1, 1, 1, 2, 3]),
        movie=np.array([10, 11, 13, 12, 10]),
        rating=np.array([5, 4, 3, 4, 3]),
        timestamp=np.zeros(5, dtype=np.int64),
    )
    found = np.array([[11, 13], [10, 11], [10, 11]])
    small = replace(dataset, test_ratings=test)
    assert measure(small, np.array([1, 2, 3]), found) == Recall(recall=0.25, hit_rate=0.5)
