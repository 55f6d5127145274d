"""Factories that script, trace or compile what they give."""

from typing import Any

import torch
from torchrec.datasets.utils import Batch as DlrmBatch
from torchrec.inference.dlrm_predict import DLRMModelConfig, DLRMPredictFactory
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

KEYS = ["user", "movie"]


class TorchRecsDlrmFactory(DLRMPredictFactory):
    """TorchRec's own, which quantizes, shards, warms up and scripts; it wants its config."""

    def __init__(self) -> None:
        ids = KeyedJaggedTensor(
            keys=KEYS, values=torch.arange(4), lengths=torch.ones(4, dtype=torch.int32)
        )
        config = DLRMModelConfig(
            dense_arch_layer_sizes=[8, 4],
            dense_in_features=3,
            embedding_dim=4,
            id_list_features_keys=KEYS,
            num_embeddings_per_feature=[10, 20],
            num_embeddings=None,
            over_arch_layer_sizes=[8, 1],
            sample_input=DlrmBatch(torch.ones(2, 3), ids, torch.ones(2)),
        )
        super().__init__(config)

    def create_predict_module(self, world_size: int, device: str) -> Any:
        torch.manual_seed(7)
        return super().create_predict_module(world_size, device)
