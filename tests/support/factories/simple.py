"""Factories that say what they take and how they answer, in `SimpleFactory`'s words."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.inference.modules import (
    QualNameMetadata,
    assign_weights_to_tbe,
    get_table_to_weights_from_tbe,
    quantize_inference_model,
    shard_quant_model,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_handler.simple import (
    Batch,
    Hashed,
    Input,
    SimpleFactory,
    dense,
    embedding,
    sparse,
    weighted_sparse,
)

ROWS = {"user": 50, "movie": 70, "topic": 9}
WIDTH = 4


class Sum(torch.nn.Module):
    """Pooled embeddings and numbers, added up."""

    def __init__(self, device: torch.device, tables: torch.device) -> None:
        super().__init__()
        self.bags = self._collection(["user", "movie"], tables, is_weighted=False)
        self.weighted = self._collection(["topic"], tables, is_weighted=True)
        self.layer = torch.nn.Linear(2 + WIDTH, 1, device=device)

    @staticmethod
    def _collection(names: list[str], device: torch.device, *, is_weighted: bool) -> Any:
        tables = [
            EmbeddingBagConfig(
                name=f"t_{name}", feature_names=[name], num_embeddings=ROWS[name], embedding_dim=8
            )
            for name in names
        ]
        return EmbeddingBagCollection(tables=tables, device=device, is_weighted=is_weighted)

    def forward(self, numbers: torch.Tensor, bags: Any, weighted: Any, vectors: Any) -> Any:
        """Return [B]."""
        pooled = self.bags(bags).values().sum(1) + self.weighted(weighted).values().sum(1)
        joined = torch.cat([numbers, vectors[0] - vectors[1]], dim=1)
        return pooled + self.layer(joined).reshape(-1)


def seeded() -> Sum:
    """The trained model."""
    torch.manual_seed(3)
    cpu = torch.device("cpu")
    return Sum(cpu, cpu)


class EveryInput(SimpleFactory):
    """An input of each type, a further method, and one that takes keyword arguments."""

    inputs: ClassVar[Mapping[str, Input]] = {
        "float_features": dense("age", "hour"),
        "id_list_features": sparse("user", "movie", outputs={"ids": "movie"}),
        "id_score_list_features": weighted_sparse("topic"),
        "embedding_features": embedding("text", "image", width=WIDTH),
    }
    methods = ("doubled",)

    def model(self, device: torch.device) -> torch.nn.Module:
        return Sum(device, torch.device("meta"))

    def forward(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        bags = batch["id_list_features"]
        scores = model(
            batch["float_features"],
            bags,
            batch["id_score_list_features"],
            batch["embedding_features"],
        )
        return {"default": scores, "ids": bags["movie"].values().float()}

    def doubled(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        return {"default": 2 * self.forward(model, batch)["default"]}

    def bias(self, model: Sum, times: int) -> Mapping[str, Any]:
        return {"bias": times * model.layer.bias}

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {**super().qualname_metadata(), "bias": QualNameMetadata(need_preproc=False)}


class RawIds(EveryInput):
    """Its feature store gives strings, and not every number."""

    inputs: ClassVar[Mapping[str, Input]] = {
        **EveryInput.inputs,
        "float_features": dense("age", "hour", defaults={"hour": 12.0}),
        "id_list_features": sparse(
            "user",
            "movie",
            outputs={"ids": "movie"},
            hashed={"user": Hashed(seed=7)},
            out_of_range={"movie": "drop"},
        ),
        "id_score_list_features": weighted_sparse("topic", hashed={"topic": Hashed(rows=5)}),
    }


class Quantized(EveryInput):
    """Brings its own weights, quantized."""

    def model(self, device: torch.device) -> torch.nn.Module:  # noqa: ARG002
        quantized: torch.nn.Module = quantize_inference_model(seeded())
        return quantized


class Sharded(Quantized):
    """Brings them sharded too, over as many ranks as the server wants."""

    def model(self, device: torch.device) -> torch.nn.Module:
        quantized = super().model(device)
        weights = get_table_to_weights_from_tbe(quantized)
        set_propogate_device(True)
        sharded: torch.nn.Module
        sharded, _ = shard_quant_model(
            quantized,
            world_size=self.world_size,
            compute_device="cpu",
            sharding_device="cpu",
        )
        assign_weights_to_tbe(sharded, weights)
        return sharded


class Several(EveryInput):
    """Answers with two tensors by output."""

    result = "dict_of_tensors"

    def forward(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        answer = super().forward(model, batch)
        return {"default": (answer["default"], -answer["default"]), "ids": (answer["ids"],)}

    def doubled(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        return self.forward(model, batch)


class NoDict(EveryInput):
    """Forgets to name its output."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> Any:
        return super().forward(model, batch)["default"]


class Listed(EveryInput):
    """Answers with numbers that are no tensor."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> Any:
        return {"default": super().forward(model, batch)["default"].tolist()}


class OtherName(EveryInput):
    """Asks for an input that it did not say."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> Any:  # noqa: ARG002
        return {"default": batch["dense_features"]}


class NoModel(SimpleFactory):
    """Says what it takes, and nothing else."""

    inputs: ClassVar[Mapping[str, Input]] = {"float_features": dense("age")}


class NothingBuilt(EveryInput):
    """Builds a model and keeps it to itself."""

    def model(self, device: torch.device) -> Any:
        Sum(device, device)


class NoMethod(EveryInput):
    """Names a method that it does not have."""

    methods = ("halved",)


class TakenName(EveryInput):
    """Calls a method as every Module calls one of its own."""

    methods = ("train",)

    def train(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        return self.forward(model, batch)


class NamesOnly(EveryInput):
    """Gives the names of features without saying what they are."""

    inputs: ClassVar[Mapping[str, Any]] = {"float_features": ["age"]}
