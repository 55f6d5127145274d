"""Features of the towers, and histories that know nothing of what must be found."""

import numpy as np

from examples.movielens.data import Dataset
from examples.two_tower.data import (
    HISTORY_MOVIES,
    ITEM_FEATURES,
    USER_FEATURES,
    item_config,
    items,
    liked,
    movies,
    pairs,
    training_rows,
    user_config,
    users,
)


def test_the_history_of_a_training_row_holds_what_its_user_liked_before(dataset: Dataset) -> None:
    known = liked(dataset.train_ratings)
    rows, target = training_rows(dataset)
    assert (target == known.movie).all()
    for row in np.random.default_rng(0).integers(0, len(rows), 200):
        before = known.movie[:row][known.user[:row] == known.user[row]]
        (instance,) = rows.take(np.array([row])).instances(USER_FEATURES)
        assert instance["user_id"] == [known.user[row]]
        assert instance["history"] == before[::-1][:HISTORY_MOVIES].tolist()
        assert target[row] not in instance["history"]


def test_a_user_to_embed_has_the_last_movies_liked_in_the_training_part(dataset: Dataset) -> None:
    train, catalogue = dataset.train_ratings, dataset.catalogue
    known = train.movie[(train.user == 42) & (train.rating >= 4)]
    (instance,) = users(dataset, np.array([42])).instances(USER_FEATURES)
    assert instance == {
        "user_id": [42],
        "age": [catalogue.age[42]],
        "gender": [catalogue.gender[42]],
        "occupation": [catalogue.occupation[42]],
        "history": known[::-1][:20].tolist(),
    }


def test_a_movie_has_its_genres_and_decade(dataset: Dataset) -> None:
    # Star Wars, of 1977, and "unknown", of no genre.
    star_wars, unknown = items(dataset.catalogue, np.array([50, 267])).instances(ITEM_FEATURES)
    assert star_wars == {"movie_id": [50], "genres": [0, 1, 13, 14, 16], "decade": [5]}
    assert unknown == {"movie_id": [267], "genres": [], "decade": [7]}


def test_every_id_is_inside_its_table(dataset: Dataset) -> None:
    catalogue = dataset.catalogue
    for bags, tower in (
        (users(dataset, np.unique(dataset.test_ratings.user)), user_config(catalogue)),
        (items(catalogue, movies(catalogue)), item_config(catalogue)),
    ):
        ends = np.cumsum(bags.lengths.sum(axis=1))[:-1]
        for ids, size in zip(np.split(bags.values, ends), tower.rows_per_table, strict=True):
            assert ids.min() >= 0
            assert ids.max() < size


def test_pairs_are_those_of_the_ratings(dataset: Dataset) -> None:
    test = dataset.test_ratings
    among = pairs(dataset.catalogue, test)
    assert among.sum() == len(test.user)
    assert among[test.user, test.movie].all()
