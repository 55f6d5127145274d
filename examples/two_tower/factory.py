"""What the archiver packages: how a server builds the towers, feeds them and splits their answers.

The package interns this file, so it imports nothing but torch, torchrec and `model.py`.
Shapes: B rows, F features of a tower, D width of an embedding, N ids.
"""

from typing import Any

import torch
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    QualNameMetadata,
)

from examples.two_tower.model import ModelConfig, TwoTower, keyed


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_config() -> ModelConfig:
    # Inside a package this is the package's own copy of the function, which knows the configs.
    from torchrec.inference.model_packager import load_pickle_config  # noqa: PLC0415

    config: ModelConfig = load_pickle_config("config.pkl", ModelConfig)
    return config


class TwoTowerPredictModule(PredictModule):
    """Three methods that answer requests, each of which reads the features that it needs.

    A batch holds `user_features` and `item_features`, each as `.lengths` [F * B] int32 and
    `.values` [N] int32.
    """

    def __init__(self, config: ModelConfig, device: str) -> None:
        """Build the dense part on `device` and the tables without memory: weights come later."""
        super().__init__(
            TwoTower(config, torch.device(device), tables_device=torch.device("meta")), device
        )
        self._towers = {"user": config.user, "item": config.item}

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Score pairs: `default` [B] float32, the cosine of the two embeddings."""
        user = self.user_embedding(batch)["embedding"]
        item = self.item_embedding(batch)["embedding"]
        return {"default": (user * item).sum(dim=1)}

    def user_embedding(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embed users by `user_features` alone: `embedding` [B, D] float32, of length 1."""
        return {"embedding": self._embed("user", batch)}

    def item_embedding(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embed items by `item_features` alone: `embedding` [B, D] float32, of length 1."""
        return {"embedding": self._embed("item", batch)}

    def _embed(self, name: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        tower: torch.nn.Module = getattr(self.predict_module, name)
        embedding: torch.Tensor = tower(
            keyed(
                self._towers[name],
                batch[f"{name}_features.lengths"],
                batch[f"{name}_features.values"],
            )
        )
        return embedding


class TwoTowerPredictFactory(PredictFactory):
    """Makes `TwoTowerPredictModule` from the packaged config."""

    def create_predict_module(self) -> torch.nn.Module:
        """Return the module with its tables on `meta` and its dense weights not yet loaded."""
        return TwoTowerPredictModule(_load_config(), _device())

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """Return the type of each input."""
        return {
            name: BatchingMetadata(type="sparse", device=_device(), pinned=["lengths", "values"])
            for name in ("user_features", "item_features")
        }

    def result_metadata(self) -> str:
        """Return how the result is split: one tensor per key."""
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
        """Return the methods that answer requests; all take the batched input."""
        return {
            name: QualNameMetadata(need_preproc=True)
            for name in ("forward", "user_embedding", "item_embedding")
        }

    def model_inputs_data(self) -> dict[str, Any]:
        """Return what it takes to draw sample requests."""
        config = _load_config()
        return {
            f"{name}_features": {
                "features": list(tower.features),
                "rows_per_table": list(tower.rows_per_table),
            }
            for name, tower in (("user", config.user), ("item", config.item))
        }
