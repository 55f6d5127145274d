"""Kinds of models whose outputs are of several tensors each."""

from typing import Any

import torch

from tests.support.factories.kinds_base import Batch
from tests.support.factories.kinds_pooled import PooledPredictModule, SumFactory


class TupledPredictModule(PooledPredictModule):
    """Gives each output, and whether it is above zero."""

    def predict_forward(self, batch: Batch) -> Any:
        return {name: (value, value > 0) for name, value in super().predict_forward(batch).items()}


class MaskedFactory(SumFactory):
    """A mask beside values."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return TupledPredictModule(model, "cpu")

    def result_metadata(self) -> str:
        return "dict_with_mask_tensor"


class SeveralFactory(MaskedFactory):
    """Two tensors."""

    def result_metadata(self) -> str:
        return "dict_of_tensors"
