"""Kinds of pooled embedding collections, each with one linear layer on top."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torchrec.inference.modules import PredictModule
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.feature_processor_ import (
    PositionWeightedModule,
    PositionWeightedModuleCollection,
)
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import Batch, KindFactory, keyed, table

MAX_LENGTH = 6
"""Positions that position-weighted features have weights for."""
MANAGED_ROWS = 12
SEEN_IDS = (3, 1_000, 77, 2_000_000_000, 40)
"""Ids that the managed-collision tables have rows for; all others share the last row."""


class Pooled(torch.nn.Module):
    """A collection whose pooled features, in the order of its configs, make one score."""

    def __init__(self, collection: torch.nn.Module, tables: Sequence[EmbeddingBagConfig]) -> None:
        super().__init__()
        self.collection = collection
        self.features = [name for config in tables for name in config.feature_names]
        width = sum(config.embedding_dim * len(config.feature_names) for config in tables)
        self.over = torch.nn.Linear(width, 1)

    def forward(self, features: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to scores [B] and the pooled embeddings [B, sum of widths]."""
        found = self.collection(features)
        if isinstance(found, tuple):  # managed collision also gives the remapped ids
            found = found[0]
        pooled = torch.cat([found[name] for name in self.features], dim=1)
        return self.over(pooled).squeeze(1), pooled


class PooledPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: Batch) -> Batch:
        score, pooled = self.predict_module(keyed(batch, self.predict_module.features))
        return {"default": score, "pooled": pooled}


class PooledFactory(KindFactory):
    """A plain collection of `tables`."""

    tables: tuple[EmbeddingBagConfig, ...]

    def configs(self) -> list[EmbeddingBagConfig]:
        """The tables for one collection, which may change them."""
        return copy.deepcopy(list(self.tables))

    def collection(self, tables_device: torch.device) -> Any:
        return EmbeddingBagCollection(tables=self.configs(), device=tables_device)

    def model(self, tables_device: torch.device) -> Any:
        return Pooled(self.collection(tables_device), self.tables)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return PooledPredictModule(model, "cpu")


class SumFactory(PooledFactory):
    """Sum pooling."""

    tables = (table("user", 50), table("movie", 40))


class OddFactory(PooledFactory):
    """A first-order weight an id, as the wide part of a DeepFM has."""

    tables = (table("odd", 3, width=1),)


class MeanFactory(PooledFactory):
    """Mean pooling."""

    tables = (
        table("user", 50, pooling=PoolingType.MEAN),
        table("movie", 40, pooling=PoolingType.MEAN),
    )


class SharedFactory(PooledFactory):
    """One table for several features, between tables of one."""

    tables = (
        table("user", 50),
        table("movie", 40, features=["clicked", "bought"]),
        table("genre", 10),
    )


class WidthsFactory(PooledFactory):
    """Tables of different widths and poolings."""

    tables = (
        table("user", 50, width=16),
        table("movie", 40, width=4, pooling=PoolingType.MEAN),
        table("genre", 10, width=8),
        table("tag", 30, width=12, pooling=PoolingType.MEAN),
    )


class ByPositionPredictModule(PooledPredictModule):
    """Takes a collection's values as they lie, as a model may that never asks for a key."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        pooled = model.collection(keyed(batch, model.features)).values()
        return {"default": model.over(pooled).squeeze(1), "pooled": pooled}


class ByPositionFactory(WidthsFactory):
    """Tables of different widths and poolings, read by position."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return ByPositionPredictModule(model, "cpu")


class WeightedPredictModule(PredictModule):
    """Batch dict with weights to scores."""

    def predict_forward(self, batch: Batch) -> Batch:
        name = "id_score_list_features"
        features = keyed(batch, self.predict_module.features, name, weighted=True)
        score, pooled = self.predict_module(features)
        return {"default": score, "pooled": pooled}


class WeightedFactory(PooledFactory):
    """Every id has a weight of its own."""

    inputs = {"id_score_list_features": "weighted_sparse"}  # noqa: RUF012  not changed
    tables = (table("tags", 30), table("clicks", 20))

    def collection(self, tables_device: torch.device) -> Any:
        return EmbeddingBagCollection(tables=self.configs(), is_weighted=True, device=tables_device)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return WeightedPredictModule(model, "cpu")


class PositionWeightedFactory(SumFactory):
    """Ids weighted by their position, by one processor for all features."""

    def collection(self, tables_device: torch.device) -> Any:
        return FeatureProcessedEmbeddingBagCollection(
            EmbeddingBagCollection(tables=self.configs(), is_weighted=True, device=tables_device),
            PositionWeightedModuleCollection(dict.fromkeys(["user", "movie"], MAX_LENGTH)),
        )


class PositionWeightedEachFactory(SumFactory):
    """Ids weighted by their position, by one processor a feature."""

    def collection(self, tables_device: torch.device) -> Any:
        return FeatureProcessedEmbeddingBagCollection(
            EmbeddingBagCollection(tables=self.configs(), is_weighted=True, device=tables_device),
            {name: PositionWeightedModule(MAX_LENGTH) for name in ("user", "movie")},
        )


def managed(tables: Sequence[BaseEmbeddingConfig], seed: int) -> ManagedCollisionCollection:
    """Managed collision that was trained on `SEEN_IDS`, less the first `seed` of them."""
    modules = {}
    for config in tables:
        modules[config.name] = MCHManagedCollisionModule(
            zch_size=config.num_embeddings,
            device=torch.device("cpu"),
            eviction_policy=LFU_EvictionPolicy(),
            eviction_interval=1,
        )
    collection = ManagedCollisionCollection(modules, tables)
    features = [name for config in tables for name in config.feature_names]
    ids = torch.tensor(SEEN_IDS[seed:]).repeat(len(features))
    collection.train()
    for _ in range(2):
        collection(
            KeyedJaggedTensor(
                keys=features, lengths=torch.ones_like(ids, dtype=torch.int32), values=ids
            )
        )
    return collection


class ManagedPredictModule(PredictModule):
    """Batch dict to scores; managed collision takes 64-bit ids only."""

    def predict_forward(self, batch: Batch) -> Batch:
        ids = {**batch, "id_list_features.values": batch["id_list_features.values"].long()}
        score, pooled = self.predict_module(keyed(ids, self.predict_module.features))
        return {"default": score, "pooled": pooled}


class ManagedFactory(PooledFactory):
    """Any id is good: managed collision finds the row, also of ids it never saw."""

    tables = (table("user", MANAGED_ROWS), table("movie", MANAGED_ROWS))

    def collection(self, tables_device: torch.device) -> Any:
        configs = self.configs()
        return ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=configs, device=tables_device),
            managed(configs, self.seed),
        )

    def predict_module(self, model: torch.nn.Module) -> Any:
        return ManagedPredictModule(model, "cpu")


class WideFactory(ManagedFactory):
    """Takes its ids in 64 bits."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return PooledPredictModule(model, "cpu")
