"""What the archiver packages: how a server builds the model, feeds it and splits its answers.

The package interns this file, so it imports nothing but torch, torchrec and `model.py`.
Shapes: B rows, K movies found for each, M ids of movies, N ids.
"""

from typing import Any

import torch
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    QualNameMetadata,
)

from examples.sequence.model import FEATURE, ModelConfig, NextMovie, keyed


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_config() -> ModelConfig:
    # Inside a package this is the package's own copy of the function, which knows the configs.
    from torchrec.inference.model_packager import load_pickle_config  # noqa: PLC0415

    config: ModelConfig = load_pickle_config("config.pkl", ModelConfig)
    return config


class NextMoviePredictModule(PredictModule):
    """Turns a batch of histories into the movies that most probably come next."""

    def __init__(self, config: ModelConfig, device: str) -> None:
        """Build the dense part on `device` and the table without memory: weights come later."""
        super().__init__(
            NextMovie(config, torch.device(device), tables_device=torch.device("meta")), device
        )
        self._movies_found = config.movies_found

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Find the next movies of a batch; a movie of the history is never one of them.

        Args:
            batch: `id_list_features.lengths` [B] int32 and `id_list_features.values` [N] int32,
                each history newest first.

        Returns:
            `movies`: [B * K] int64 ids, the most probable first, those of row 0 first.
            `scores`: [B * K] float32, their probabilities.
        """
        lengths, values = batch["id_list_features.lengths"], batch["id_list_features.values"]
        logits = self.predict_module(keyed(lengths, values))
        row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        logits[row, values] = -torch.inf
        logits[:, 0] = -torch.inf
        scores, movies = logits.softmax(dim=1).topk(self._movies_found)
        return {"movies": movies.reshape(-1), "scores": scores.reshape(-1)}


class NextMoviePredictFactory(PredictFactory):
    """Makes `NextMoviePredictModule` from the packaged config."""

    def create_predict_module(self) -> torch.nn.Module:
        """Return the module with its table on `meta` and its dense weights not yet loaded."""
        return NextMoviePredictModule(_load_config(), _device())

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """Return the type of the input."""
        return {
            "id_list_features": BatchingMetadata(
                type="sparse", device=_device(), pinned=["lengths", "values"]
            )
        }

    def result_metadata(self) -> str:
        """Return how the result is split: one tensor per key, of K values a row."""
        return "dict_of_tensor"

    def run_weights_independent_tranformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Return the module as it is."""
        return predict_module

    def run_weights_dependent_transformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Return the module as it is: quantizing and sharding are the server's."""
        return predict_module

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """Return the methods that answer requests."""
        return {"forward": QualNameMetadata(need_preproc=True)}

    def model_inputs_data(self) -> dict[str, Any]:
        """Return what it takes to draw sample requests."""
        return {
            "id_list_features": {
                "features": [FEATURE],
                "rows_per_table": [_load_config().movie_ids],
            }
        }
