"""Reading the files of the wheel."""

import importlib.util
import re

import numpy as np
import pytest

from examples.movielens.files import DatasetMissingError, read_catalogue, read_ratings


def test_all_ratings_are_read_by_user_and_time() -> None:
    ratings = read_ratings()
    assert len(ratings.user) == 100_000
    assert (np.unique(ratings.user) == np.arange(1, 944)).all()
    assert (np.unique(ratings.movie) == np.arange(1, 1683)).all()
    assert set(ratings.rating) == {1, 2, 3, 4, 5}
    order = np.lexsort((ratings.timestamp, ratings.user))
    assert (order == np.arange(100_000)).all()
    # The first line of the file.
    at = np.flatnonzero((ratings.user == 196) & (ratings.movie == 242))
    assert ratings.rating[at].tolist() == [3]
    assert ratings.timestamp[at].tolist() == [881250949]


def test_all_users_and_movies_are_read() -> None:
    catalogue = read_catalogue()
    assert len(catalogue.age) == 944
    assert len(catalogue.release_year) == 1683
    assert (catalogue.age[1], catalogue.age[943]) == (24, 22)
    assert (catalogue.titles[1], catalogue.release_year[1]) == ("Toy Story", 1995)
    # Animation, Children's and Comedy.
    assert catalogue.genre_lengths[1] == 3
    assert catalogue.genre_lengths.max() == 6
    assert len(catalogue.genre_values) == catalogue.genre_lengths.sum()
    # "unknown", without a year.
    assert (catalogue.genre_lengths[267], catalogue.release_year[267]) == (0, 1995)


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = (
        "MovieLens-100k is not installed; this example reads it from the recbole wheel: "
        "run `pip install --no-deps recbole==1.2.1`"
    )
    with pytest.raises(DatasetMissingError, match=f"^{re.escape(message)}$"):
        read_ratings()
