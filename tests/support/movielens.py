"""Requests of the MovieLens example."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from examples.movielens.data import SPARSE_FEATURES
from examples.movielens.rows import Rows


def jagged(rows: Rows, weights: torch.Tensor | None = None) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=list(SPARSE_FEATURES),
        lengths=torch.from_numpy(rows.lengths.ravel()),
        values=torch.from_numpy(rows.values),
        weights=weights,
    )
