"""A ranking model with a dense, a sparse and a weighted sparse input, and its weights inside.

The factory brings its own weights (seeded), so it is served without an archiver too.
"""

import torch
from torchrec.inference.model_packager import load_config_text
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictModule,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory

DENSE = 3
SPARSE = {"user": 50, "movie": 40, "genres": 10}
WEIGHTED = {"tags": 30, "clicks": 20}
WIDTH = 8


class Ranking(torch.nn.Module):
    """Pooled embeddings and dense features into one score."""

    def __init__(self, tables_device: str = "cpu") -> None:
        super().__init__()
        self.sparse = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{name}", embedding_dim=WIDTH, num_embeddings=rows, feature_names=[name]
                )
                for name, rows in SPARSE.items()
            ],
            device=torch.device(tables_device),
        )
        self.weighted = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{name}",
                    embedding_dim=WIDTH,
                    num_embeddings=rows,
                    feature_names=[name],
                    pooling=PoolingType.SUM,
                )
                for name, rows in WEIGHTED.items()
            ],
            is_weighted=True,
            device=torch.device(tables_device),
        )
        self.over = torch.nn.Sequential(
            torch.nn.Linear(DENSE + WIDTH * (len(SPARSE) + len(WEIGHTED)), 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 1),
        )

    def forward(
        self, dense: torch.Tensor, sparse: KeyedJaggedTensor, weighted: KeyedJaggedTensor
    ) -> torch.Tensor:
        """[B, DENSE] and two KeyedJaggedTensors to [B]."""
        pooled = [
            found[name]
            for names, found in (
                (SPARSE, self.sparse(sparse).to_dict()),
                (WEIGHTED, self.weighted(weighted).to_dict()),
            )
            for name in names
        ]
        scores: torch.Tensor = self.over(torch.cat([dense, *pooled], dim=1))
        return scores.squeeze(1)


def seeded(tables_device: str = "cpu") -> Ranking:
    """The model with weights large enough that scores differ from row to row."""
    generator = torch.Generator().manual_seed(7)
    model = Ranking(tables_device)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_meta:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


class RankingPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Score a batch: `default` and its logit, [B] each."""
        logits = self.predict_module(
            batch["float_features"],
            KeyedJaggedTensor(
                keys=list(SPARSE),
                lengths=batch["id_list_features.lengths"],
                values=batch["id_list_features.values"],
            ),
            KeyedJaggedTensor(
                keys=list(WEIGHTED),
                lengths=batch["id_score_list_features.lengths"],
                values=batch["id_score_list_features.values"],
                weights=batch["id_score_list_features.weights"],
            ),
        )
        return {"default": torch.sigmoid(logits), "logit": logits}


class RankingPredictFactory(ForwardFactory):
    """Brings its weights itself."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, on the CPU, with its weights."""
        return RankingPredictModule(seeded(), "cpu")

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """A dense, a sparse and a weighted sparse input."""
        return {
            "float_features": BatchingMetadata(type="dense", device="cpu", pinned=[""]),
            "id_list_features": BatchingMetadata(type="sparse", device="cpu", pinned=["values"]),
            "id_score_list_features": BatchingMetadata(
                type="weighted_sparse", device="cpu", pinned=[]
            ),
        }


class MetaRankingPredictFactory(RankingPredictFactory):
    """Leaves tables on meta: the archive brings the weights. Tells its name from a text config."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module without rows."""
        assert load_config_text("name.txt") == "ranking"
        return RankingPredictModule(seeded("meta"), "cpu")
