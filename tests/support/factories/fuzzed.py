"""A model with every type of input, two methods and a call by keywords, to be fuzzed."""

from typing import Any

import torch
from torchrec.inference.modules import BatchingMetadata, QualNameMetadata

from tests.support.factories.ranking import RankingPredictFactory, RankingPredictModule, seeded

EMBEDDED = ("image", "title")
WIDTH = 4


class FuzzedPredictModule(RankingPredictModule):
    """The ranking model's logits and what its embedding input sums to."""

    def predict_forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`default` [B], and `pairs` [2 * B], two values a row."""
        logits = super().predict_forward(batch)["logit"]
        summed = torch.stack(list(batch["embedding_features"])).sum(dim=(0, 2))
        score = logits + summed
        return {"default": score, "pairs": torch.stack((score, -summed), dim=1).reshape(-1)}

    def negative(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The same with another sign."""
        return {name: -value for name, value in self.predict_forward(batch).items()}

    def add(self, first: float, second: float) -> dict[str, float]:
        """A method that is called once a request, by keywords."""
        return {"sum": float(first) + float(second)}


class FuzzedPredictFactory(RankingPredictFactory):
    """Brings its weights itself."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, on the CPU."""
        return FuzzedPredictModule(seeded(), "cpu")

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """One input of each type."""
        return {
            **super().batching_metadata(),
            "embedding_features": BatchingMetadata(type="embedding", device="cpu", pinned=[]),
        }

    def model_inputs_data(self) -> dict[str, Any]:
        """What the model hides."""
        return {
            "float_features": {"features": ["age", "price", "hour"]},
            "embedding_features": {"features": list(EMBEDDED), "width": WIDTH},
        }

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """Two methods that are batched, one that is not."""
        return {
            "forward": QualNameMetadata(need_preproc=True),
            "negative": QualNameMetadata(need_preproc=True),
            "add": QualNameMetadata(need_preproc=False),
        }
