"""The split by time, and features that know nothing of what they must predict."""

from dataclasses import replace

import numpy as np
import pytest

from examples.movielens.data import (
    DENSE_FEATURES,
    MEAN_PRIOR,
    SPARSE_FEATURES,
    Dataset,
    genres,
    in_test,
    totals,
)
from examples.movielens.files import read_ratings


def test_the_last_fifth_of_each_users_ratings_in_time_is_the_test_part(dataset: Dataset) -> None:
    train, test = dataset.train_ratings, dataset.test_ratings
    assert (len(train.user), len(test.user)) == (80_367, 19_633)
    for user in range(1, 944):
        before, after = train.timestamp[train.user == user], test.timestamp[test.user == user]
        assert len(after) == (len(before) + len(after)) // 5
        assert before.max() <= after.min()


def test_the_two_parts_are_all_ratings(dataset: Dataset) -> None:
    ratings = read_ratings()
    test = in_test(ratings)
    assert (ratings.movie[~test] == dataset.train_ratings.movie).all()
    assert (ratings.movie[test] == dataset.test_ratings.movie).all()


def test_the_means_of_a_training_row_hold_earlier_ratings_only(dataset: Dataset) -> None:
    """Counted one by one for some rows, ratings of the same second in the order given."""
    train, rows = dataset.train_ratings, dataset.train()
    rest = train.rating - dataset.mean_rating
    position = np.arange(len(train.user))
    for row in np.random.default_rng(0).integers(0, len(rows), 200):
        is_earlier = (train.timestamp < train.timestamp[row]) | (
            (train.timestamp == train.timestamp[row]) & (position < row)
        )
        for kind, column in (("user", train.user), ("movie", train.movie)):
            known = rest[is_earlier & (column == column[row])]
            mean, count = (DENSE_FEATURES.index(f"{kind}_{name}") for name in ("mean", "count"))
            expected_mean = known.sum() / (len(known) + MEAN_PRIOR)
            assert rows.dense[row, mean] == pytest.approx(expected_mean, abs=1e-5)
            assert rows.dense[row, count] == pytest.approx(np.log1p(len(known)) / 6, abs=1e-6)


def test_features_of_test_rows_know_no_test_rating(dataset: Dataset) -> None:
    test = dataset.test_ratings
    other = replace(dataset, test_ratings=replace(test, rating=6 - test.rating)).test()
    rows = dataset.test()
    assert (other.dense == rows.dense).all()
    assert (other.values == rows.values).all()
    assert (other.label != rows.label).any()


def test_test_rows_hold_the_means_of_the_whole_training_part(dataset: Dataset) -> None:
    train, test, rows = dataset.train_ratings, dataset.test_ratings, dataset.test()
    known = train.rating[train.user == test.user[0]] - dataset.mean_rating
    assert rows.dense[0, 0] == pytest.approx(known.sum() / (len(known) + MEAN_PRIOR), abs=1e-6)


def test_a_row_holds_one_id_of_every_feature_but_the_genres(dataset: Dataset) -> None:
    rows = dataset.test()
    assert rows.dense.shape == (len(rows), len(DENSE_FEATURES))
    for name, lengths in zip(SPARSE_FEATURES, rows.lengths, strict=True):
        assert set(lengths) == ({0, 1, 2, 3, 4, 5, 6} if name == "genres" else {1})


def test_every_id_is_inside_its_table(dataset: Dataset) -> None:
    for rows in (dataset.train(), dataset.test()):
        ends = np.cumsum(rows.lengths.sum(axis=1))
        for ids, size in zip(np.split(rows.values, ends[:-1]), dataset.rows_per_table, strict=True):
            assert ids.min() >= 0
            assert ids.max() < size


def test_a_click_is_a_rating_of_4_or_5(dataset: Dataset) -> None:
    rating = dataset.test_ratings.rating
    assert (dataset.test().label == (rating >= 4)).all()


def test_genres_are_those_of_the_catalogue(dataset: Dataset) -> None:
    catalogue = dataset.catalogue
    found = genres(catalogue, np.array([1, 267, 1]))
    assert found.lengths.tolist() == [[3, 0, 3]]
    # Movie 0 has none, so those of movie 1 are the first three.
    assert found.values.tolist() == catalogue.genre_values[:3].tolist() * 2


def test_totals_are_sums_and_numbers_by_key() -> None:
    total, count = totals(np.array([2, 0, 2]), np.array([1.0, 2.0, 3.0]), 4)
    assert total.tolist() == [2.0, 0.0, 4.0, 0.0]
    assert count.tolist() == [1, 0, 2, 0]
