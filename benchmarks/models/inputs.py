"""Inputs for the models, drawn alike every time.

Shapes: B rows, F features, N ids.
"""

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.models import Model
from torchrec_handler.serve.request import Columns

Arrays = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]


def draw(model: Model, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch as a predict module takes it, of users and items that are all different."""
    return _tensors(_draw(model, rows, rows, seed))


def draw_user(model: Model, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of one user and B candidates: in all rows the user's inputs are the same."""
    arrays = _draw(model, 1, rows, seed)
    for name in model.shared:
        if name in arrays:
            arrays[name] = arrays[name].repeat(rows, axis=0)
        else:
            lengths, values = arrays[f"{name}.lengths"], arrays[f"{name}.values"]
            ends = lengths.cumsum()
            lists = np.split(values, ends[:-1])
            arrays[f"{name}.lengths"] = lengths.repeat(rows, axis=1)
            arrays[f"{name}.values"] = np.concatenate([np.tile(ids, rows) for ids in lists])
    return _tensors(arrays)


def draw_request(model: Model, rows: int, seed: int = 0) -> Columns:
    """The request of what `draw_user` gives, in which the user's inputs are there once."""
    return Columns(arrays=dict(_draw(model, 1, rows, seed)), batch_size=rows)


def _draw(model: Model, users: int, items: int, seed: int) -> Arrays:
    """Blocks [B, F], lengths [F, B] and values [N]; of the user's inputs B is `users`."""
    arrays: Arrays = {}
    for number, (name, entry) in enumerate(model.factory().inputs.items()):
        random = np.random.default_rng([seed, number])
        rows = users if name in model.shared else items
        if entry.type == "dense":
            shape = (rows, len(entry.features))
            arrays[name] = random.standard_normal(shape, dtype=np.float32)
            continue
        features = [model.features[feature] for feature in entry.features]
        lengths = np.stack(
            [random.integers(one.longest // 2, one.longest + 1, rows) for one in features]
        ).clip(min=1)
        below = np.repeat([one.rows for one in features], lengths.sum(axis=1))
        arrays[f"{name}.lengths"] = lengths.astype(np.int32)
        arrays[f"{name}.values"] = random.integers(0, below, dtype=np.int32)
    return arrays


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(array.reshape(-1) if name.endswith(".lengths") else array)
        for name, array in arrays.items()
    }
