"""The Criteo DLRM of TorchServe's own example, at any size: model, factory and weights.

The package interns this file, so it imports nothing but torch and torchrec.
Shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchrec.inference.model_packager import load_pickle_config
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    QualNameMetadata,
)
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DENSE_FEATURES = 13
# fmt: off
CRITEO_ROWS = (
    45_833_188, 36_746, 17_245, 7_413, 20_243, 3, 7_114, 1_441, 62, 29_275_261, 1_572_176,
    345_138, 10, 2_209, 11_267, 128, 4, 974, 14, 48_937_457, 11_316_796, 40_094_537, 452_104,
    12_606, 104, 35,
)
"""177,944,275 rows in 26 tables."""
# fmt: on


@dataclass(frozen=True, kw_only=True)
class CriteoConfig:
    """Sizes of a model."""

    rows: tuple[int, ...]
    """[F], the rows of each table."""
    width: int = 64

    @property
    def features(self) -> list[str]:
        """[F] names."""
        return [f"cat_{number}" for number in range(len(self.rows))]


def build_model(config: CriteoConfig, tables_device: str) -> DLRM:
    """The float32 DLRM; its dense part is on the CPU."""
    model = DLRM(
        embedding_bag_collection=EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{feature}",
                    embedding_dim=config.width,
                    num_embeddings=rows,
                    feature_names=[feature],
                )
                for feature, rows in zip(config.features, config.rows, strict=True)
            ],
            device=torch.device(tables_device),
        ),
        dense_in_features=DENSE_FEATURES,
        dense_arch_layer_sizes=[512, 256, config.width],
        over_arch_layer_sizes=[512, 512, 256, 1],
        dense_device=torch.device("cpu"),
    )
    model.inter_arch.to("cpu")
    return model


class CriteoPredictModule(PredictModule):
    """Input tensors to one probability a row."""

    def __init__(self, config: CriteoConfig) -> None:
        super().__init__(build_model(config, "meta"), "cpu")
        self._features = config.features

    def predict_forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`default` [B] of `float_features` [B, 13] and `id_list_features`."""
        lengths, values = batch["id_list_features.lengths"], batch["id_list_features.values"]
        logits = self.predict_module(
            batch["float_features"],
            KeyedJaggedTensor(keys=self._features, values=values, lengths=lengths),
        )
        return {"default": torch.sigmoid(logits).reshape(-1)}


class CriteoPredictFactory(PredictFactory):
    """Tables on `meta`: they are mapped."""

    def create_predict_module(self) -> torch.nn.Module:
        """The module of the packaged config."""
        return CriteoPredictModule(load_pickle_config("config.pkl", CriteoConfig))

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """One dense and one sparse input."""
        return {
            "float_features": BatchingMetadata(type="dense", device="cpu", pinned=[]),
            "id_list_features": BatchingMetadata(type="sparse", device="cpu", pinned=[]),
        }

    def result_metadata(self) -> str:
        """One tensor a key."""
        return "dict_of_tensor"

    def run_weights_independent_tranformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Nothing."""
        return predict_module

    def run_weights_dependent_transformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Nothing."""
        return predict_module

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """Only forward."""
        return {"forward": QualNameMetadata(need_preproc=True)}


def kjt(features: int, values: torch.Tensor) -> KeyedJaggedTensor:
    """One id a row for every feature, of values [F * B]."""
    config = CriteoConfig(rows=(1,) * features)
    lengths = torch.ones(values.numel(), dtype=torch.int32)
    return KeyedJaggedTensor(keys=config.features, values=values, lengths=lengths)


def random_batch(tables: Sequence[int], rows: int, seed: int) -> dict[str, torch.Tensor]:
    """What the predict module takes, one id a feature, anywhere in tables of so many rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, most, (rows,), generator=generator) for most in tables]
    return {
        "float_features": torch.rand(rows, DENSE_FEATURES, generator=generator),
        "id_list_features.lengths": torch.ones(len(tables) * rows, dtype=torch.int32),
        "id_list_features.values": torch.cat(ids).int(),
    }


def make_weights(config: CriteoConfig) -> dict[str, torch.Tensor]:
    """Seeded weights by the model's own names.

    A table's rows are windows of one random line, a row one number further than the row before:
    different rows, of which a machine has to hold one number each.
    """
    torch.manual_seed(0)
    model = build_model(config, "meta")
    weights = {
        name: value.clone() for name, value in model.state_dict().items() if not value.is_meta
    }
    for feature, rows in zip(config.features, config.rows, strict=True):
        line = torch.randn(rows + config.width)
        name = f"sparse_arch.embedding_bag_collection.embedding_bags.t_{feature}.weight"
        weights[name] = line.as_strided((rows, config.width), (1, 1))
    return weights
