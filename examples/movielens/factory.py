"""What the archiver packages: how a server builds the model, feeds it and reads its answers.

The package interns this file, so it imports nothing but torch, torchrec, `SimpleFactory` and
`model.py`. Shapes: B rows.
"""

from collections.abc import Mapping

import torch
from torchrec.inference.model_packager import load_pickle_config

from examples.movielens.model import ModelConfig, build_model
from torchrec_handler.simple import Batch, Input, SimpleFactory, dense, sparse


def _load_config() -> ModelConfig:
    config: ModelConfig = load_pickle_config("config.pkl", ModelConfig)
    return config


class MovieLensPredictFactory(SimpleFactory):
    """Serves the DLRM, whose features and sizes are those of the packaged config."""

    @property
    def inputs(self) -> Mapping[str, Input]:
        """The features that the model was trained with."""
        config = _load_config()
        return {
            "float_features": dense(*config.dense_features),
            "id_list_features": sparse(*config.sparse_features),
        }

    def model(self, device: torch.device) -> torch.nn.Module:
        """Build the dense part on `device` and the tables without memory: weights come later."""
        model: torch.nn.Module = build_model(
            _load_config(), device, tables_device=torch.device("meta")
        )
        return model

    def forward(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `default`: the probability of a click, [B] float32."""
        logits = model(batch["float_features"], batch["id_list_features"])
        return {"default": torch.sigmoid(logits).reshape(-1)}
