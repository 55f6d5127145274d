"""What the archiver packages: how a server builds the towers, feeds them and reads their answers.

The package interns this file, so it imports nothing but torch, torchrec, `SimpleFactory` and
`model.py`. Shapes: B rows, D width of an embedding.
"""

from collections.abc import Mapping

import torch
from torchrec.inference.model_packager import load_pickle_config

from examples.two_tower.model import ModelConfig, TwoTower
from torchrec_handler.simple import Batch, Input, SimpleFactory, sparse


def _load_config() -> ModelConfig:
    config: ModelConfig = load_pickle_config("config.pkl", ModelConfig)
    return config


class TwoTowerPredictFactory(SimpleFactory):
    """Serves both towers, together and each alone, by the features that each needs."""

    methods = ("user_embedding", "item_embedding")

    @property
    def inputs(self) -> Mapping[str, Input]:
        """The features of each tower, as packaged in its config."""
        config = _load_config()
        return {
            "user_features": sparse(*config.user.features),
            "item_features": sparse(*config.item.features),
        }

    def model(self, device: torch.device) -> torch.nn.Module:
        """Build the dense part on `device` and the tables without memory: weights come later."""
        return TwoTower(_load_config(), device, tables_device=torch.device("meta"))

    def forward(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Score pairs: `default` [B] float32, the cosine of the two embeddings."""
        return {"default": model(batch["user_features"], batch["item_features"])}

    def user_embedding(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Embed users by `user_features` alone: `embedding` [B, D] float32, of length 1."""
        return {"embedding": model.get_submodule("user")(batch["user_features"])}

    def item_embedding(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Embed items by `item_features` alone: `embedding` [B, D] float32, of length 1."""
        return {"embedding": model.get_submodule("item")(batch["item_features"])}
