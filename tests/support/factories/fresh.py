"""A ranking model whose tables are so large that writing a delta's rows takes milliseconds."""

import torch
from torchrec.inference.modules import PredictModule
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory

DENSE_FEATURES = 3
FEATURES = ("user", "movie", "genre", "tag")
ROWS = 100_000
WIDTH = 64


class Fresh(torch.nn.Module):
    """Pooled embeddings and dense features into one score."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.sparse = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{name}", embedding_dim=WIDTH, num_embeddings=rows, feature_names=[name]
                )
                for name in FEATURES
            ]
        )
        self.over = torch.nn.Sequential(
            torch.nn.Linear(DENSE_FEATURES + WIDTH * len(FEATURES), 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 1),
        )

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """[B, DENSE_FEATURES] and features to [B]."""
        pooled = self.sparse(sparse).values()
        scores: torch.Tensor = self.over(torch.cat([dense, pooled], dim=1))
        return scores.squeeze(1)


class FreshPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Score a batch: `score` [B]."""
        sparse = KeyedJaggedTensor(
            keys=list(FEATURES),
            lengths=batch["id_list_features.lengths"],
            values=batch["id_list_features.values"],
        )
        return {"score": self.predict_module(batch["float_features"], sparse)}


class FreshPredictFactory(ForwardFactory):
    """Brings its weights itself."""

    rows = ROWS
    inputs = {"float_features": "dense", "id_list_features": "sparse"}  # noqa: RUF012  not changed

    def create_predict_module(self) -> torch.nn.Module:
        """The module, on the CPU, with its weights."""
        return FreshPredictModule(Fresh(self.rows), "cpu")


class LargeFreshPredictFactory(FreshPredictFactory):
    """With tables of more than a million rows together."""

    rows = 4 * ROWS
