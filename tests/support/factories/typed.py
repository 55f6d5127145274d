"""A model whose outputs are of every type that a frontend has to pass on."""

from typing import Any

import torch
from torchrec.inference.modules import PredictModule, QualNameMetadata

from tests.support.factories.base import ForwardFactory


class TypedPredictModule(PredictModule):
    """Two numbers a row, `a` and `b`."""

    def predict_forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Their sum, as it is, as other types, and what it is no logarithm of."""
        total = batch["float_features"].sum(1)
        return {
            "default": total,
            "log": torch.log(total),
            "double": total.double(),
            "long": total.long(),
            "int": total.int(),
            "byte": total.to(torch.uint8),
            "flag": total > 2,
            "pair": torch.stack((total, -total), dim=1),
        }

    def first(self, instances: list[int]) -> list[int]:
        """A method that is called once a request, by keywords."""
        return instances[:1]


class TypedFactory(ForwardFactory):
    """Has no tables."""

    inputs = {"float_features": "dense"}  # noqa: RUF012  as its base has it

    def create_predict_module(self) -> Any:
        """The module, on the CPU."""
        return TypedPredictModule(torch.nn.Identity(), "cpu")

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """One method that is batched, one that is not."""
        return {
            "forward": QualNameMetadata(need_preproc=True),
            "first": QualNameMetadata(need_preproc=False),
        }

    def model_inputs_data(self) -> dict[str, Any]:
        """What the model hides."""
        return {"float_features": {"features": ["a", "b"]}}
