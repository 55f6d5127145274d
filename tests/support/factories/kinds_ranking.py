"""Kinds of ranking models that TorchRec ships: DLRM, DLRM with deep cross layers, DeepFM."""

import copy
from typing import Any

import torch
from torchrec.inference.modules import PredictModule
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from tests.support.factories.kinds_base import WIDTH, Batch, KindFactory, keyed, table

DENSE = 5
TABLES = (table("user", 50), table("movie", 40), table("genre", 10))
FEATURES = tuple(name for config in TABLES for name in config.feature_names)


class RankingPredictModule(PredictModule):
    """Batch dict to one score a row."""

    def predict_forward(self, batch: Batch) -> Batch:
        scores = self.predict_module(
            dense_features=batch["float_features"], sparse_features=keyed(batch, FEATURES)
        )
        return {"default": scores.squeeze(1)}


class DlrmFactory(KindFactory):
    """DLRM."""

    inputs = {"float_features": "dense", "id_list_features": "sparse"}  # noqa: RUF012  not changed

    def collection(self, tables_device: torch.device) -> Any:
        return EmbeddingBagCollection(tables=copy.deepcopy(list(TABLES)), device=tables_device)

    def model(self, tables_device: torch.device) -> Any:
        return DLRM(
            embedding_bag_collection=self.collection(tables_device),
            dense_in_features=DENSE,
            dense_arch_layer_sizes=[16, WIDTH],
            over_arch_layer_sizes=[16, 1],
        )

    def predict_module(self, model: torch.nn.Module) -> Any:
        return RankingPredictModule(model, "cpu")


class DlrmDcnFactory(DlrmFactory):
    """DLRM with deep cross layers."""

    def model(self, tables_device: torch.device) -> Any:
        return DLRM_DCN(
            embedding_bag_collection=self.collection(tables_device),
            dense_in_features=DENSE,
            dense_arch_layer_sizes=[16, WIDTH],
            over_arch_layer_sizes=[16, 1],
            dcn_num_layers=2,
            dcn_low_rank_dim=4,
        )


class DeepFmFactory(DlrmFactory):
    """DeepFM."""

    def model(self, tables_device: torch.device) -> Any:
        return SimpleDeepFMNN(
            num_dense_features=DENSE,
            embedding_bag_collection=self.collection(tables_device),
            hidden_layer_size=16,
            deep_fm_dimension=6,
        )
