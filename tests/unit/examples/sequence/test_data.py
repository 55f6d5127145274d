"""Steps of a sequence, and how often the next one is found."""

import numpy as np
import pytest

from examples.movielens.data import in_test
from examples.movielens.files import Ratings, read_ratings
from examples.sequence.data import hit_rate, most_popular, steps_to_test, steps_to_train


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    return read_ratings()


def test_a_history_is_all_that_the_user_rated_before(ratings: Ratings) -> None:
    test = np.flatnonzero(in_test(ratings))
    steps = steps_to_test(ratings)
    assert len(steps) == 19_633
    for step in np.random.default_rng(0).integers(0, len(steps), 200):
        at = test[step]
        before = ratings.movie[:at][ratings.user[:at] == ratings.user[at]]
        (instance,) = steps.history.take(np.array([step])).instances(["history"])
        assert instance["history"] == before[::-1].tolist()
        assert steps.movie[step] == ratings.movie[at]


def test_training_knows_nothing_of_the_test_part(ratings: Ratings) -> None:
    train = ratings.take(~in_test(ratings))
    steps = steps_to_train(ratings, 50)
    assert (steps.movie == train.movie).all()
    assert steps.history.lengths.max() == 50
    for step in np.random.default_rng(0).integers(0, len(steps), 200):
        before = train.movie[:step][train.user[:step] == train.user[step]]
        (instance,) = steps.history.take(np.array([step])).instances(["history"])
        assert instance["history"] == before[::-1][:50].tolist()


def test_a_hit_is_the_next_movie_anywhere_among_those_found(ratings: Ratings) -> None:
    steps = steps_to_test(ratings)
    wrong = np.zeros((len(steps), 3), dtype=np.int64)
    assert hit_rate(wrong, steps) == 0.0
    wrong[:100, 2] = steps.movie[:100]
    assert hit_rate(wrong, steps) == pytest.approx(100 / len(steps))


def test_popularity_counts_training_ratings_and_leaves_out_the_history(ratings: Ratings) -> None:
    steps = steps_to_test(ratings)
    found = most_popular(ratings, steps, 10)
    count = np.bincount(ratings.movie[~in_test(ratings)], minlength=1683)
    for step in np.random.default_rng(0).integers(0, len(steps), 50):
        (instance,) = steps.history.take(np.array([step])).instances(["history"])
        unseen = np.setdiff1d(np.arange(1, 1683), instance["history"])
        best = unseen[np.argsort(-count[unseen], kind="stable")[:10]]
        assert found[step].tolist() == best.tolist()
