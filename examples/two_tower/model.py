"""The two towers and all it takes to build them, shared by training and by the factory.

The factory's package interns this file, so it imports nothing but torch and torchrec.
Shapes: B rows, F features of a tower, D width of an embedding, N ids.
"""

# No `from __future__ import annotations`: in a torch package a dataclass cannot resolve its
# annotations from strings, because its module is not in `sys.modules`.
from dataclasses import dataclass

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The features of one tower."""

    features: tuple[str, ...]
    """F names, in the order of the tower's input."""

    rows_per_table: tuple[int, ...]
    """F sizes: the ids of a feature are below its table's."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the factory reads from the package before it has any weights."""

    user: TowerConfig
    item: TowerConfig
    embedding_dim: int
    """D, of the tables and of what the towers give."""

    hidden_dim: int


class Tower(torch.nn.Module):
    """Pooled embeddings of all features into one embedding of length 1."""

    def __init__(
        self,
        tower: TowerConfig,
        config: ModelConfig,
        device: torch.device,
        tables_device: torch.device,
    ) -> None:
        """Build it with fresh weights."""
        super().__init__()
        self._features = tower.features
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{feature}",
                    feature_names=[feature],
                    num_embeddings=rows,
                    embedding_dim=config.embedding_dim,
                    pooling=PoolingType.MEAN,
                )
                for feature, rows in zip(tower.features, tower.rows_per_table, strict=True)
            ],
            device=tables_device,
        )
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(
                len(tower.features) * config.embedding_dim, config.hidden_dim, device=device
            ),
            torch.nn.ReLU(),
            torch.nn.Linear(config.hidden_dim, config.embedding_dim, device=device),
        )

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Return the embeddings [B, D]."""
        pooled = self.tables(features).to_dict()
        joined = torch.cat([pooled[feature] for feature in self._features], dim=1)
        return torch.nn.functional.normalize(self.layers(joined))


class TwoTower(torch.nn.Module):
    """A user tower and an item tower; the score of a pair is the cosine of its embeddings."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        tables_device: torch.device | None = None,
    ) -> None:
        """Build it in float32, with fresh weights.

        Args:
            config: sizes and names.
            device: where the dense part lives.
            tables_device: where the tables live, `device` when not given; `meta` allocates none.
        """
        super().__init__()
        self.user = Tower(config.user, config, device, tables_device or device)
        self.item = Tower(config.item, config, device, tables_device or device)

    def forward(self, user: KeyedJaggedTensor, item: KeyedJaggedTensor) -> torch.Tensor:
        """Return the scores [B] of B users, each with the item of the same row."""
        scores: torch.Tensor = (self.user(user) * self.item(item)).sum(dim=1)
        return scores


def keyed(tower: TowerConfig, lengths: torch.Tensor, values: torch.Tensor) -> KeyedJaggedTensor:
    """Join lengths [F * B] and values [N], both int32 and feature by feature."""
    return KeyedJaggedTensor(keys=list(tower.features), values=values, lengths=lengths.reshape(-1))
