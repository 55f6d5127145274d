"""A model that calls a package which only requirements.txt tells of."""

import importlib
from typing import Any

import torch
from torchrec.inference.modules import PredictModule

from tests.support.factories.base import ForwardFactory

MODULE = "needed_by_a_test"


class NeedingPredictModule(PredictModule):
    """Imports it when it is called, which the packager does not see."""

    def predict_forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """A row's sum, as many times as the package says."""
        factor = importlib.import_module("needed_by_a_test").FACTOR
        return {"default": batch["float_features"].sum(1) * factor}


class NeedingFactory(ForwardFactory):
    """Has no tables."""

    inputs = {"float_features": "dense"}  # noqa: RUF012  as its base has it

    def create_predict_module(self) -> Any:
        """The module, on the CPU."""
        return NeedingPredictModule(torch.nn.Identity(), "cpu")

    def model_inputs_data(self) -> dict[str, Any]:
        """What the model hides."""
        return {"float_features": {"num_features": 1}}
