"""Factories that do a part of the server's work themselves, or want more of it."""

from typing import Any

import torch
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.inference.modules import (
    DEFAULT_QUANT_MAPPING,
    PredictModule,
    assign_weights_to_tbe,
    get_table_to_weights_from_tbe,
    quantize_embeddings,
    quantize_inference_model,
    set_pruning_data,
    shard_quant_model,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from tests.support.factories.kinds_base import Batch, KindFactory, keyed
from tests.support.factories.kinds_pooled import SumFactory
from tests.support.factories.kinds_sequence import SequenceFactory

PRUNED_ROWS = {"t_user": 30, "t_movie": 25}


class QuantizedFactory(SumFactory):
    """Quantizes once the weights are there, to another data type than the server would."""

    def run_weights_dependent_transformations(self, predict_module: torch.nn.Module) -> Any:
        return quantize_inference_model(predict_module, quantization_dtype=torch.quint4x2)


class QuantizedAtOnceFactory(SumFactory):
    """Gives a module that is quantized from the start."""

    def create_predict_module(self) -> Any:
        return quantize_inference_model(
            super().create_predict_module(), quantization_dtype=torch.quint4x2
        )


class ShardedFactory(SumFactory):
    """Gives a module that is quantized and sharded from the start, over two devices."""

    def create_predict_module(self) -> Any:
        module = quantize_inference_model(super().create_predict_module())
        weights = get_table_to_weights_from_tbe(module)
        set_propogate_device(True)
        sharded, _ = shard_quant_model(
            module, world_size=2, compute_device="cpu", sharding_device="cpu"
        )
        assign_weights_to_tbe(sharded, weights)
        return sharded


class Both(torch.nn.Module):
    """Pooled features and histories."""

    def __init__(self, pooled: torch.nn.Module, histories: torch.nn.Module) -> None:
        super().__init__()
        self.pooled = pooled
        self.histories = histories


class BothPredictModule(PredictModule):
    """The sum of two scores."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        pooled, _ = model.pooled(keyed(batch, model.pooled.features))
        history, _ = model.histories(keyed(batch, model.histories.features, "history"))
        return {"default": pooled + history}


class PartFactory(KindFactory):
    """Quantizes its pooled collection with `quantize_embeddings`, which leaves sequences float."""

    inputs = {"id_list_features": "sparse", "history": "sparse"}  # noqa: RUF012  not changed

    def model(self, tables_device: torch.device) -> Any:
        return Both(SumFactory().model(tables_device), SequenceFactory().model(tables_device))

    def predict_module(self, model: torch.nn.Module) -> Any:
        return BothPredictModule(model, "cpu")

    def run_weights_dependent_transformations(self, predict_module: torch.nn.Module) -> Any:
        return quantize_embeddings(predict_module, torch.float16, inplace=True)


class PartShardedFactory(PartFactory):
    """Shards its pooled collection, but not its sequences."""

    def run_weights_dependent_transformations(self, predict_module: torch.nn.Module) -> Any:
        set_propogate_device(True)
        quantized = quantize_embeddings(predict_module, torch.int8, inplace=True)
        sharded, _ = shard_quant_model(quantized, compute_device="cpu", sharding_device="cpu")
        return sharded


class PrunedFactory(SumFactory):
    """Keeps the first rows of its tables only."""

    def run_weights_independent_tranformations(self, predict_module: torch.nn.Module) -> Any:
        return set_pruning_data(predict_module, PRUNED_ROWS)


class OwnCollection(EmbeddingBagCollection):
    """A user's own type, which nobody quantizes unasked."""


class OwnSequences(EmbeddingCollection):
    """A user's own type of sequences."""


class OwnTypeFactory(SumFactory):
    """A collection of a type that came out of the package."""

    def collection(self, tables_device: torch.device) -> Any:
        return OwnCollection(tables=self.configs(), device=tables_device)


class OwnQuantized(QuantEmbeddingBagCollection):
    """A quantized counterpart that is in the package too."""


class OwnMappingFactory(OwnTypeFactory):
    """Quantizes its own type itself, to a type of its own."""

    def run_weights_dependent_transformations(self, predict_module: torch.nn.Module) -> Any:
        mapping = {f"{OwnCollection.__module__}.OwnCollection": OwnQuantized}
        trimmed = {name.partition(">.")[2] or name: kind for name, kind in mapping.items()}
        return quantize_inference_model(predict_module, {**DEFAULT_QUANT_MAPPING, **trimmed})
