"""A two-tower model: a score for a pair, and each tower's embedding alone."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torchrec.inference.modules import PredictModule, QualNameMetadata
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import WIDTH, Batch, KindFactory, keyed, table

USER = (table("user", 50), table("city", 20))
ITEM = (table("movie", 40), table("genre", 10))


def collection(
    tables: Sequence[EmbeddingBagConfig], tables_device: torch.device
) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=copy.deepcopy(list(tables)), device=tables_device)


class Tower(torch.nn.Module):
    """One side's features into one vector."""

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.collection = collection
        self.features = [
            name for config in collection.embedding_bag_configs() for name in config.feature_names
        ]
        self.over = torch.nn.Linear(WIDTH * len(self.features), WIDTH)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Features to [B, WIDTH]."""
        pooled = self.collection(features)
        embedding: torch.Tensor = self.over(
            torch.cat([pooled[name] for name in self.features], dim=1)
        )
        return embedding


class TwoTower(torch.nn.Module):
    """The user's vector times the item's."""

    def __init__(self, tables_device: torch.device) -> None:
        super().__init__()
        self.user = Tower(collection(USER, tables_device))
        self.item = Tower(collection(ITEM, tables_device))

    def forward(self, user: KeyedJaggedTensor, item: KeyedJaggedTensor) -> torch.Tensor:
        """Features of B pairs to [B]."""
        scores: torch.Tensor = (self.user(user) * self.item(item)).sum(dim=1)
        return scores


class TwoTowerPredictModule(PredictModule):
    """Three methods on one batch."""

    def predict_forward(self, batch: Batch) -> Batch:
        """Score pairs."""
        return {"default": self.predict_module(self._user(batch), self._item(batch))}

    def user_embedding(self, batch: Batch) -> Batch:
        """The users' vectors, [B, WIDTH]."""
        return {"user": self.predict_module.user(self._user(batch))}

    def item_embedding(self, batch: Batch) -> Batch:
        """The items' vectors, [B, WIDTH]."""
        return {"item": self.predict_module.item(self._item(batch))}

    def _user(self, batch: Batch) -> KeyedJaggedTensor:
        return keyed(batch, self.predict_module.user.features, "user_features")

    def _item(self, batch: Batch) -> KeyedJaggedTensor:
        return keyed(batch, self.predict_module.item.features, "item_features")


class TwoTowerFactory(KindFactory):
    """Two towers."""

    inputs = {"user_features": "sparse", "item_features": "sparse"}  # noqa: RUF012  not changed

    def model(self, tables_device: torch.device) -> Any:
        return TwoTower(tables_device)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return TwoTowerPredictModule(model, "cpu")

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {
            name: QualNameMetadata(need_preproc=True)
            for name in ("forward", "user_embedding", "item_embedding")
        }
