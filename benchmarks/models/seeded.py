"""Tables and layers with seeded weights that give scores as different as a trained model's.

The packages of the models intern this file, so it imports nothing but torch and torchrec.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch.nn import init
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

Model = TypeVar("Model", bound=torch.nn.Module)


class Feature(NamedTuple):
    """A sparse feature, which has a table of its own."""

    rows: int
    """Of its table; ids are below it."""
    longest: int = 1
    """So many ids a row at most."""


def pooled(
    features: Mapping[str, Feature], width: int, device: torch.device
) -> EmbeddingBagCollection:
    """A table for each feature; what it pools to is about 1 large, however many ids there are."""
    return EmbeddingBagCollection(
        device=device,
        tables=[
            EmbeddingBagConfig(
                name=f"t_{name}",
                feature_names=[name],
                num_embeddings=feature.rows,
                embedding_dim=width,
                init_fn=partial(init.normal_, std=feature.longest**-0.5),
            )
            for name, feature in features.items()
        ],
    )


def sequences(
    features: Mapping[str, Feature], width: int, device: torch.device
) -> EmbeddingCollection:
    """A table for each feature, whose ids are not pooled."""
    return EmbeddingCollection(
        device=device,
        tables=[
            EmbeddingConfig(
                name=f"t_{name}",
                feature_names=[name],
                num_embeddings=feature.rows,
                embedding_dim=width,
                init_fn=init.normal_,
            )
            for name, feature in features.items()
        ],
    )


def as_trained(model: Model) -> Model:
    """Draw the weights of linear layers and norms, in place: what training leaves is no default."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.BatchNorm1d | torch.nn.LayerNorm):
            init.uniform_(module.weight, 0.7, 1.3)
            init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.PReLU):
            init.uniform_(module.weight, 0.05, 0.4)
        if isinstance(module, torch.nn.BatchNorm1d):
            init.normal_(module.get_buffer("running_mean"), std=0.3)
            init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return model
