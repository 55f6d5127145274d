"""Fetches embeddings from a running server, in JSON rows.

Shapes: B rows, D width of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import numpy as np

from examples.two_tower.data import ITEM_FEATURES, USER_FEATURES, items, movies, users

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.data import Dataset

TIMEOUT_SECONDS = 60


class EmbedError(RuntimeError):
    """The server could not be reached, or did not answer with embeddings."""


def embed_users(server: str, dataset: Dataset, user: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the embeddings [B, D] of users as they are at the end of the training part.

    Raises:
        EmbedError: no server, or no embeddings in its answer.
    """
    return _embed(server, "user_embedding", users(dataset, user).instances(USER_FEATURES))


def embed_movies(server: str, dataset: Dataset) -> NDArray[np.float32]:
    """Return the embeddings [B, D] of all movies, in the order of `movies`.

    Raises:
        EmbedError: no server, or no embeddings in its answer.
    """
    catalogue = dataset.catalogue
    bags = items(catalogue, movies(catalogue))
    return _embed(server, "item_embedding", bags.instances(ITEM_FEATURES))


def _embed(
    server: str, qualname: str, instances: list[dict[str, list[int]]]
) -> NDArray[np.float32]:
    """Ask for the embedding of rows that hold the features of one tower alone."""
    url = f"{server.rstrip('/')}/predictions/two_tower"
    headers = {"X-TorchRec-Qualname": qualname}
    try:
        answer = httpx.post(
            url, json={"instances": instances}, headers=headers, timeout=TIMEOUT_SECONDS
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        message = f"{url}: {error}"
        raise EmbedError(message) from error
    if answer.is_success:
        match answer.json():
            case {"embedding": [*embeddings]} if len(embeddings) == len(instances):
                return np.array(embeddings, dtype=np.float32)
    message = f"{url}: answered {answer.status_code} without embeddings: {answer.text[:500]}"
    raise EmbedError(message)
