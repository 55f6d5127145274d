"""Factories that use what a package holds: configs, extra files, mocked and extern modules."""

from dataclasses import dataclass
from typing import Any

import torch
from torchrec.inference.model_packager import load_config_text, load_pickle_config
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictModule,
    quantize_inference_model,
)

from tests.support.factories import house, telemetry
from tests.support.factories.ranking import (
    DENSE,
    RankingPredictFactory,
    RankingPredictModule,
    seeded,
)


@dataclass
class Scale:
    """A config of a class of the user's own."""

    factor: float


class ScaledPredictModule(RankingPredictModule):
    """The ranking model, its results times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__(seeded(), "cpu")
        self.factor = factor

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`default` and `logit`, [B] each."""
        result = super().predict_forward(batch)
        return {name: value * self.factor for name, value in result.items()}


class ConfiguredPredictFactory(RankingPredictFactory):
    """Multiplies by the product of a text and a pickled config and two extra files."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, scaled."""
        import torch_package_importer  # type: ignore[import-not-found]  # noqa: PLC0415  only inside

        factor = load_pickle_config("scale.pkl", Scale).factor
        factor *= float(load_config_text("scale.txt"))
        factor *= float(torch_package_importer.load_text("extra_files", "scale.txt"))
        factor *= int.from_bytes(torch_package_importer.load_binary("extra_files", "scale.bin"))
        return ScaledPredictModule(factor)


class HousePredictFactory(RankingPredictFactory):
    """Multiplies by what an extern module of the worker says."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, scaled."""
        return ScaledPredictModule(house.FACTOR)


class TelemetryPredictFactory(RankingPredictFactory):
    """Calls what its packager mocked."""

    def create_predict_module(self) -> torch.nn.Module:
        """Raises where the module is mocked."""
        telemetry.send("created")
        return super().create_predict_module()


class RecordingPredictModule(RankingPredictModule):
    """The ranking model, with what the factory's transformations saw of its dense weights."""

    def __init__(self) -> None:
        super().__init__(seeded("meta"), "cpu")
        self.seen: dict[str, list[float]] = {}

    def see(self, transformation: str) -> None:
        """Record the first row of the first layer."""
        self.seen[transformation] = self.predict_module.state_dict()["over.0.weight"][0].tolist()


class RecordingPredictFactory(RankingPredictFactory):
    """Keeps what its transformations see."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module with dense weights of 0.5, which no checkpoint holds, and no rows."""
        module = RecordingPredictModule()
        with torch.no_grad():
            for parameter in module.predict_module.over.parameters():
                parameter.fill_(0.5)
        return module

    def run_weights_independent_tranformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Record."""
        assert isinstance(predict_module, RecordingPredictModule)
        predict_module.see("independent")
        return predict_module

    def run_weights_dependent_transformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Record."""
        assert isinstance(predict_module, RecordingPredictModule)
        predict_module.see("dependent")
        return predict_module


class QuantizedPredictFactory(RankingPredictFactory):
    """Quantizes tables that have no rows yet, as a factory of a large model does."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, quantized on meta."""
        module = RankingPredictModule(seeded("meta"), "cpu")
        quantized: torch.nn.Module = quantize_inference_model(module)
        return quantized


class RenamingPredictFactory(RankingPredictFactory):
    """Changes the dense part in place once the weights are there, as lowering to a backend does."""

    def run_weights_dependent_transformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Wrap the dense part: its weights have other names from here on."""
        assert isinstance(predict_module, RankingPredictModule)
        inner = predict_module.predict_module
        inner.over = torch.nn.Sequential(inner.over, torch.nn.Identity())
        return predict_module


class EmptyPredictFactory(RankingPredictFactory):
    """Brings no weights at all, rows or dense."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module on meta."""
        return RankingPredictModule(seeded().to("meta"), "cpu")


class NamesakePredictFactory(RankingPredictFactory):
    """Its dense features are called like its sparse ones."""

    def model_inputs_data(self) -> dict[str, Any]:
        """The names of the dense features."""
        return {"float_features": {"features": ["user", "movie", "genres"]}}


class NoTablesPredictModule(PredictModule):
    """Scores dense features alone."""

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`default`, [B]."""
        return {"default": self.predict_module(batch["float_features"]).squeeze(1)}


class NoTablesPredictFactory(RankingPredictFactory):
    """A model without an embedding."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module, with its weights."""
        return NoTablesPredictModule(torch.nn.Linear(DENSE, 1), "cpu")

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """The dense input."""
        return {"float_features": BatchingMetadata(type="dense", device="cpu", pinned=[])}
