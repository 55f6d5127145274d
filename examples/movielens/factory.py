"""What the archiver packages: how a server builds the model, feeds it and splits its answers.

The package interns this file, so it imports nothing but torch, torchrec and `model.py`.
Shapes: B rows, F sparse features, D dense features, N ids.
"""

from typing import Any

import torch
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    QualNameMetadata,
)

from examples.movielens.model import ModelConfig, build_model, id_list_features


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_config() -> ModelConfig:
    # Inside a package this is the package's own copy of the function, which knows the configs.
    from torchrec.inference.model_packager import load_pickle_config  # noqa: PLC0415

    config: ModelConfig = load_pickle_config("config.pkl", ModelConfig)
    return config


class MovieLensPredictModule(PredictModule):
    """Turns a batch of input tensors into the probability of a click for each row."""

    def __init__(self, config: ModelConfig, device: str) -> None:
        """Build the dense part on `device` and the tables without memory: weights come later."""
        model = build_model(config, torch.device(device), tables_device=torch.device("meta"))
        super().__init__(model, device)
        self._config = config

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Score a batch.

        Args:
            batch: `float_features` [B, D] float32, `id_list_features.lengths` [F * B] int32 and
                `id_list_features.values` [N] int32.

        Returns:
            `default`: [B] float32, between 0 and 1.
        """
        logits = self.predict_module(
            dense_features=batch["float_features"],
            sparse_features=id_list_features(
                self._config,
                batch["id_list_features.lengths"],
                batch["id_list_features.values"],
            ),
        )
        return {"default": torch.sigmoid(logits).reshape(-1)}


class MovieLensPredictFactory(PredictFactory):
    """Makes `MovieLensPredictModule` from the packaged config."""

    def create_predict_module(self) -> torch.nn.Module:
        """Return the module with its tables on `meta` and its dense weights not yet loaded."""
        return MovieLensPredictModule(_load_config(), _device())

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """Return the type of each input."""
        device = _device()
        return {
            "float_features": BatchingMetadata(type="dense", device=device, pinned=[""]),
            "id_list_features": BatchingMetadata(
                type="sparse", device=device, pinned=["lengths", "values"]
            ),
        }

    def result_metadata(self) -> str:
        """Return how the result is split: one tensor of scores per key."""
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
        config = _load_config()
        return {
            "float_features": {"features": list(config.dense_features)},
            "id_list_features": {
                "features": list(config.sparse_features),
                "rows_per_table": list(config.rows_per_table),
            },
        }
