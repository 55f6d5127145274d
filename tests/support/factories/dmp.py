"""A small DLRM whose weights come from a checkpoint, to be trained on several ranks."""

import torch
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictModule,
)
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory

FEATURES = ["f0", "f1", "f2", "f3"]
ROWS = 100


def build(tables_device: str) -> DLRM:
    """The float32 model; its dense part is on the CPU."""
    model = DLRM(
        EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t{number}",
                    embedding_dim=16,
                    num_embeddings=ROWS + number,
                    feature_names=[feature],
                )
                for number, feature in enumerate(FEATURES)
            ],
            device=torch.device(tables_device),
        ),
        dense_in_features=4,
        dense_arch_layer_sizes=[16, 16],
        over_arch_layer_sizes=[16, 1],
        dense_device=torch.device("cpu"),
    )
    model.inter_arch.to("cpu")
    return model


def jagged(values: torch.Tensor) -> KeyedJaggedTensor:
    """One id a row for every feature, of values [F * B]."""
    lengths = torch.ones(values.numel(), dtype=torch.int32)
    return KeyedJaggedTensor(keys=FEATURES, lengths=lengths, values=values)


def sample() -> tuple[torch.Tensor, KeyedJaggedTensor]:
    """Eight rows to score."""
    generator = torch.Generator().manual_seed(9)
    dense = torch.randn(8, 4, generator=generator)
    return dense, jagged(torch.randint(0, ROWS, (4 * 8,), generator=generator))


class DmpPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`default` [B]."""
        logits = self.predict_module(
            batch["float_features"],
            KeyedJaggedTensor(
                keys=FEATURES,
                lengths=batch["id_list_features.lengths"],
                values=batch["id_list_features.values"],
            ),
        )
        return {"default": torch.sigmoid(logits).reshape(-1)}


class DmpPredictFactory(ForwardFactory):
    """Its tables are on `meta`."""

    def create_predict_module(self) -> torch.nn.Module:
        return DmpPredictModule(build("meta"), "cpu")

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        return {
            "float_features": BatchingMetadata(type="dense", device="cpu", pinned=[]),
            "id_list_features": BatchingMetadata(type="sparse", device="cpu", pinned=[]),
        }
