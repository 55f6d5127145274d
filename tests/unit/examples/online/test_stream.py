"""Ratings by time."""

import numpy as np

from examples.movielens.data import SPARSE_FEATURES
from examples.online.stream import load


def test_what_arrives_comes_after_what_is_known() -> None:
    stream = load()
    known, later = stream.known.train_ratings, stream.known.test_ratings
    assert len(known.user) == len(later.user) == len(stream.later) == 50_000
    assert known.timestamp.max() <= later.timestamp.min()
    assert np.all(np.diff(later.timestamp) >= 0)
    np.testing.assert_array_equal(stream.later.label, later.click)
    chunks = list(stream.chunks(20_000))
    assert [len(chunk) for chunk in chunks] == [20_000, 20_000, 10_000]
    np.testing.assert_array_equal(
        np.concatenate([chunk.dense for chunk in chunks]), stream.later.dense
    )
    user = SPARSE_FEATURES.index("user_id") * 10_000
    np.testing.assert_array_equal(chunks[2].values[user : user + 10_000], later.user[40_000:])


def test_means_and_counts_are_of_earlier_ratings() -> None:
    stream = load()
    later, known = stream.known.test_ratings, stream.known.train_ratings
    user = int(later.user[0])
    first = int(np.flatnonzero(later.user == user)[0])
    before = known.rating[known.user == user]
    count = stream.later.dense[first, 1]
    np.testing.assert_allclose(count, np.log1p(len(before)) / 6, rtol=1e-6)
