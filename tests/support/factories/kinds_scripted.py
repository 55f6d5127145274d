"""Factories that script, trace or compile what they give."""

from typing import Any

import torch
from torchrec.datasets.utils import Batch as DlrmBatch
from torchrec.fx import Tracer
from torchrec.inference.dlrm_predict import DLRMModelConfig, DLRMPredictFactory
from torchrec.inference.modules import PredictModule, quantize_inference_model
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import Batch, KindFactory, table

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


class Traced(torch.nn.Module):
    """A collection with one linear layer, as tensors in and out."""

    def __init__(self, tables_device: torch.device) -> None:
        super().__init__()
        self.bags = EmbeddingBagCollection(
            tables=[table(name, 8, width=4) for name in KEYS], device=tables_device
        )
        self.over = torch.nn.Linear(8, 1)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        pooled = self.bags(KeyedJaggedTensor(keys=KEYS, values=values, lengths=lengths))
        scores: torch.Tensor = self.over(pooled.values()).reshape(-1)
        return scores


class TracedPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: Batch) -> Batch:
        ids = (batch["id_list_features.values"], batch["id_list_features.lengths"])
        return {"default": self.predict_module(*ids)}


class TracedFactory(KindFactory):
    """Traces once the weights are there, as TorchRec's examples do: no collection is left."""

    def model(self, tables_device: torch.device) -> Any:
        return Traced(tables_device)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return TracedPredictModule(model, "cpu")

    def model_inputs_data(self) -> dict[str, Any]:
        return {"id_list_features": {"features": KEYS}}

    def run_weights_dependent_transformations(self, predict_module: torch.nn.Module) -> Any:
        inner: Any = predict_module.predict_module
        (path,) = (name for name, found in predict_module.named_children() if found is inner)
        tracer = Tracer(leaf_modules=["IntNBitTableBatchedEmbeddingBagsCodegen"])
        setattr(
            predict_module, path, self.made_of(torch.fx.GraphModule(inner, tracer.trace(inner)))
        )
        return predict_module

    def made_of(self, traced: torch.nn.Module) -> torch.nn.Module:
        return traced


class ScriptedFactory(TracedFactory):
    """Scripts what it traced."""

    def made_of(self, traced: torch.nn.Module) -> torch.nn.Module:
        return torch.jit.script(traced)


class MetaScriptedFactory(ScriptedFactory):
    """Leaves its tables to a checkpoint."""

    tables_device = "meta"


class QuantizedScriptedFactory(ScriptedFactory):
    """Quantizes before it traces."""

    def run_weights_dependent_transformations(self, predict_module: torch.nn.Module) -> Any:
        return super().run_weights_dependent_transformations(
            quantize_inference_model(predict_module)
        )
