"""What a user rated before."""

import numpy as np

from examples.movielens.files import Ratings
from examples.movielens.history import after_all, before
from examples.movielens.rows import Bags

RATINGS = Ratings(
    user=np.array([1, 1, 1, 3, 3]),
    movie=np.array([10, 11, 12, 20, 21]),
    rating=np.array([5, 4, 3, 2, 1]),
    timestamp=np.array([1, 2, 3, 1, 2]),
)


def lists(bags: Bags) -> list[list[int]]:
    return [row["history"] for row in bags.instances(["history"])]


def test_a_history_holds_the_users_own_movies_before_the_rating_newest_first() -> None:
    assert lists(before(RATINGS, np.arange(5))) == [[], [10], [11, 10], [], [20]]


def test_histories_come_in_the_order_asked_for() -> None:
    assert lists(before(RATINGS, np.array([4, 2]))) == [[20], [11, 10]]


def test_the_newest_movies_of_a_longer_history_are_kept() -> None:
    assert lists(before(RATINGS, np.arange(5), most=1)) == [[], [10], [11], [], [20]]
    assert lists(after_all(RATINGS, np.array([1, 3]), most=2)) == [[12, 11], [21, 20]]


def test_after_all_ratings_a_user_has_seen_all_of_them() -> None:
    assert lists(after_all(RATINGS, np.array([3, 1, 2]))) == [[21, 20], [12, 11, 10], []]
