"""Two ways to find movies that a user has not rated: nearest embeddings, and popularity.

Shapes: U users, M movies, D width of an embedding, K movies found for each user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from examples.two_tower.data import movies, pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.data import Dataset

FOUND = 10
"""K."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The best movies for each user, the best first."""

    movie: NDArray[np.int64]
    """[U, K] ids."""

    score: NDArray[np.floating[Any]]
    """[U, K], of embeddings their cosine."""


def nearest(
    dataset: Dataset,
    user: NDArray[np.int64],
    user_embeddings: NDArray[np.float32],
    movie_embeddings: NDArray[np.float32],
) -> Found:
    """Find the movies whose embeddings are nearest to the user's.

    Args:
        dataset: tells which movies a user has rated in the training part.
        user: [U] ids.
        user_embeddings: [U, D], of length 1.
        movie_embeddings: [M, D], of length 1, in the order of `movies`.
    """
    index = faiss.IndexFlatIP(movie_embeddings.shape[1])
    index.add(movie_embeddings)
    seen = pairs(dataset.catalogue, dataset.train_ratings)[user]
    enough = FOUND + int(seen.sum(axis=1).max())
    cosine, position = index.search(user_embeddings, enough)
    return _first_unseen(movies(dataset.catalogue)[position], cosine, seen)


def most_popular(dataset: Dataset, user: NDArray[np.int64]) -> Found:
    """Find the movies with the most ratings in the training part."""
    ids = movies(dataset.catalogue)
    ratings = np.bincount(dataset.train_ratings.movie, minlength=ids.max() + 1)[ids]
    order = np.argsort(-ratings, kind="stable")
    shape = (len(user), len(ids))
    return _first_unseen(
        np.broadcast_to(ids[order], shape),
        np.broadcast_to(ratings[order].astype(np.float64), shape),
        pairs(dataset.catalogue, dataset.train_ratings)[user],
    )


def _first_unseen(
    ranked: NDArray[np.int64], score: NDArray[np.floating[Any]], seen: NDArray[np.bool_]
) -> Found:
    """Keep the first K movies of each user that the user has not seen."""
    hidden = np.take_along_axis(seen, ranked, axis=1)
    first = np.argsort(hidden, axis=1, kind="stable")[:, :FOUND]
    return Found(
        movie=np.take_along_axis(ranked, first, axis=1),
        score=np.take_along_axis(score, first, axis=1),
    )
