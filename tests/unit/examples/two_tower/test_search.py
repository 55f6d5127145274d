"""Two ways to find movies, against counting one by one."""

import numpy as np

from examples.movielens.data import Dataset
from examples.two_tower.data import movies
from examples.two_tower.search import FOUND, most_popular, nearest

USERS = np.array([42, 1, 405])
"""The last one rated the most movies."""


def unseen(dataset: Dataset, user: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    seen = dataset.train_ratings.movie[dataset.train_ratings.user == user]
    return np.setdiff1d(movies(dataset.catalogue), seen)


def normal(rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    vectors = np.random.default_rng(rows).standard_normal((rows, 32), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_the_nearest_unseen_movies_are_found_nearest_first(dataset: Dataset) -> None:
    user_embeddings, movie_embeddings = normal(len(USERS)), normal(1682)
    found = nearest(dataset, USERS, user_embeddings, movie_embeddings)
    for row, user in enumerate(USERS):
        ids = unseen(dataset, user)
        cosine = movie_embeddings[ids - 1] @ user_embeddings[row]
        best = np.argsort(-cosine)[:FOUND]
        assert found.movie[row].tolist() == ids[best].tolist()
        np.testing.assert_allclose(found.score[row], cosine[best], atol=1e-6)


def test_the_most_rated_unseen_movies_are_found_most_rated_first(dataset: Dataset) -> None:
    found = most_popular(dataset, USERS)
    for row, user in enumerate(USERS):
        ids = unseen(dataset, user)
        count = np.array([(dataset.train_ratings.movie == movie).sum() for movie in ids])
        best = np.argsort(-count, kind="stable")[:FOUND]
        assert found.movie[row].tolist() == ids[best].tolist()
        assert found.score[row].tolist() == count[best].tolist()
