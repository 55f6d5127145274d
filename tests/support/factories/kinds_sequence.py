"""Kinds of sequence models: one embedding an id, in the order of the ids."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torchrec.inference.modules import PredictModule
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from tests.support.factories.kinds_base import WIDTH, Batch, KindFactory, keyed
from tests.support.factories.kinds_pooled import MANAGED_ROWS, managed

STEPS = 5
"""Ids of a history that count, the first ones."""


def table(name: str, rows: int, features: Sequence[str] = ()) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=f"t_{name}",
        num_embeddings=rows,
        embedding_dim=WIDTH,
        feature_names=list(features or [name]),
    )


class Histories(torch.nn.Module):
    """Histories of ids, padded, into one score; the order of the ids matters."""

    def __init__(self, collection: torch.nn.Module, tables: Sequence[EmbeddingConfig]) -> None:
        super().__init__()
        self.collection = collection
        self.features = [name for config in tables for name in config.feature_names]
        self.over = torch.nn.Linear(WIDTH * STEPS * len(self.features), 1)

    def forward(self, features: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to scores [B] and the padded histories [B, F * STEPS * WIDTH]."""
        found = self.collection(features)
        if isinstance(found, tuple):  # managed collision also gives the remapped ids
            found = found[0]
        padded = torch.cat([_pad(found[name]) for name in self.features], dim=1).flatten(1)
        return self.over(padded).squeeze(1), padded


def _pad(history: JaggedTensor) -> torch.Tensor:
    padded: torch.Tensor = torch.ops.fbgemm.jagged_2d_to_dense(
        history.values(), history.offsets().long(), STEPS
    )
    return padded


class HistoriesPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: Batch) -> Batch:
        ids = {**batch, "id_list_features.values": batch["id_list_features.values"].long()}
        score, padded = self.predict_module(keyed(ids, self.predict_module.features))
        return {"default": score, "padded": padded}


class SequenceFactory(KindFactory):
    """EmbeddingCollection: one table of two features, one of one."""

    tables = (table("movie", 40, ["clicked", "bought"]), table("genre", 10))

    def configs(self) -> list[EmbeddingConfig]:
        """The tables for one collection, which may change them."""
        return copy.deepcopy(list(self.tables))

    def collection(self, tables_device: torch.device) -> Any:
        return EmbeddingCollection(tables=self.configs(), device=tables_device)

    def model(self, tables_device: torch.device) -> Any:
        return Histories(self.collection(tables_device), self.tables)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return HistoriesPredictModule(model, "cpu")


class ManagedSequenceFactory(SequenceFactory):
    """EmbeddingCollection behind managed collision."""

    tables = (table("movie", MANAGED_ROWS), table("genre", MANAGED_ROWS))

    def collection(self, tables_device: torch.device) -> Any:
        configs = self.configs()
        return ManagedCollisionEmbeddingCollection(
            EmbeddingCollection(tables=configs, device=tables_device), managed(configs, self.seed)
        )
