"""What the factories of every kind of model share: their metadata and their seeded weights.

A kind is a factory that brings its weights; with `tables_device = "meta"` it leaves its tables
without rows, and an archive of it needs the checkpoint of a `trained` model.
"""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory

Batch = dict[str, torch.Tensor]
WIDTH = 8


def table(
    name: str,
    rows: int,
    *,
    width: int = WIDTH,
    features: Sequence[str] = (),
    pooling: PoolingType = PoolingType.SUM,
) -> EmbeddingBagConfig:
    """A table `t_NAME` of the feature NAME, or of `features`."""
    return EmbeddingBagConfig(
        name=f"t_{name}",
        num_embeddings=rows,
        embedding_dim=width,
        feature_names=list(features or [name]),
        pooling=pooling,
    )


def keyed(
    batch: Batch, keys: Sequence[str], name: str = "id_list_features", *, weighted: bool = False
) -> KeyedJaggedTensor:
    """A sparse input of a batch under its features' names."""
    return KeyedJaggedTensor(
        keys=list(keys),
        lengths=batch[f"{name}.lengths"],
        values=batch[f"{name}.values"],
        weights=batch[f"{name}.weights"] if weighted else None,
    )


def seeded(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every weight a large, seeded value, so that scores differ from row to row.

    Each weight has a generator of its own: those that stay on `meta` change no other.
    """
    with torch.no_grad():
        for position, parameter in enumerate(module.parameters()):
            if not parameter.is_meta and parameter.is_floating_point():
                generator = torch.Generator().manual_seed(1_000 * seed + position)
                values = torch.randn(parameter.shape, generator=generator)
                # Not so large that a sigmoid at the end would say 0 or 1 to every row.
                parameter.copy_(values / parameter.shape[-1] ** 0.5)
    return module.eval()


class KindFactory(ForwardFactory):
    """What the kinds have in common."""

    tables_device = "cpu"
    seed = 0

    @abc.abstractmethod
    def model(self, tables_device: torch.device) -> Any:
        """The model that was trained."""

    @abc.abstractmethod
    def predict_module(self, model: torch.nn.Module) -> Any:
        """What turns a batch into the model's inputs."""

    def create_predict_module(self) -> Any:
        return self.predict_module(seeded(self.model(torch.device(self.tables_device)), self.seed))


def trained(kind: type[KindFactory]) -> Any:
    """A predict module with other weights than the kind's factory brings."""
    factory = kind()
    factory.tables_device = "cpu"
    factory.seed = 1
    return factory.create_predict_module()
