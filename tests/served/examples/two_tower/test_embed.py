"""Embeddings from the real server, by requests that hold one tower's features alone."""

import httpx
import numpy as np
import pytest

from examples.movielens.data import Dataset
from examples.two_tower.data import ITEM_FEATURES, USER_FEATURES, items, users
from examples.two_tower.embed import EmbedError, embed_movies, embed_users

USERS = np.array([1, 42, 943])


def test_embeddings_have_length_1(two_tower: str, dataset: Dataset) -> None:
    user_embeddings = embed_users(two_tower, dataset, USERS)
    movie_embeddings = embed_movies(two_tower, dataset)
    assert (user_embeddings.shape, movie_embeddings.shape) == ((3, 32), (1682, 32))
    for embeddings in (user_embeddings, movie_embeddings):
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_a_served_score_is_the_product_of_the_served_embeddings(
    two_tower: str, dataset: Dataset
) -> None:
    """One user, shared by all movies, as a request for a ranking has it."""
    movies = np.array([50, 71, 267])
    shared = users(dataset, USERS[1:2]).instances(USER_FEATURES)[0]
    instances = items(dataset.catalogue, movies).instances(ITEM_FEATURES)
    answer = httpx.post(
        f"{two_tower}/predictions/two_tower", json={"instances": instances, "shared": shared}
    )
    expected = (
        embed_movies(two_tower, dataset)[movies - 1] @ embed_users(two_tower, dataset, USERS)[1]
    )
    np.testing.assert_allclose(answer.json()["default"], expected, atol=1e-6)


def test_columns_share_one_empty_row_of_what_a_method_does_not_read(
    two_tower: str, dataset: Dataset
) -> None:
    bags = users(dataset, USERS)
    answer = httpx.post(
        f"{two_tower}/predictions/two_tower",
        headers={"X-TorchRec-Qualname": "user_embedding"},
        json={
            "user_features.lengths": bags.lengths.ravel().tolist(),
            "user_features.values": bags.values.tolist(),
            "item_features.lengths": [0, 0, 0],
            "item_features.values": [],
        },
    )
    expected = embed_users(two_tower, dataset, USERS)
    np.testing.assert_allclose(answer.json()["embedding"], expected, atol=1e-6)


def test_what_the_server_answered_is_told(two_tower: str, dataset: Dataset) -> None:
    url = f"{two_tower}/predictions/predictions/two_tower"
    answer = httpx.post(url, json={}).text
    assert "Model not found: predictions" in answer
    with pytest.raises(EmbedError) as raised:
        embed_users(f"{two_tower}/predictions", dataset, USERS)
    assert str(raised.value) == f"{url}: answered 404 without embeddings: {answer}"
