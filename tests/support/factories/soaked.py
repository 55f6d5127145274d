"""The ranking model, which hangs where a request says so, and is as slow as it is told to be."""

import os
import time

import torch

from tests.support.factories.ranking import RankingPredictFactory, RankingPredictModule, seeded

HANGS = 1e6
"""A first dense feature with which the model never answers."""
SECONDS_A_ROW = "SOAKED_SECONDS_A_ROW"
"""A variable of the worker's environment."""


class SoakedPredictModule(RankingPredictModule):
    """As slow as the environment says."""

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Score a batch, or never."""
        dense = batch["float_features"]
        if bool((dense[:, 0] == HANGS).any()):
            time.sleep(3600)
        time.sleep(float(os.environ.get(SECONDS_A_ROW, "0")) * len(dense))
        return super().predict_forward(batch)


class SoakedPredictFactory(RankingPredictFactory):
    """Brings its weights itself."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, on the CPU."""
        return SoakedPredictModule(seeded(), "cpu")
