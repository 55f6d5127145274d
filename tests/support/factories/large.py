"""A model whose archive takes seconds to write: long enough to kill the build half way."""

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from tests.support.factories.ranking import RankingPredictFactory, RankingPredictModule, seeded

ROWS = 400_000
WIDTH = 64


class LargePredictFactory(RankingPredictFactory):
    """The ranking model and a table that nothing looks up."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module with its weights: random rows, which hardly compress."""
        model = seeded()
        model.large = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name="t_large",
                    embedding_dim=WIDTH,
                    num_embeddings=ROWS,
                    feature_names=["large"],
                )
            ]
        )
        return RankingPredictModule(model, "cpu")
