"""Dense weights: found and loaded by the names of the model's own checkpoint."""

from typing import Any

import pytest
import torch
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.inference.modules import (
    PredictModule,
    quantize_inference_model,
    shard_quant_model,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.feature_processor_ import PositionWeightedModule
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from tests.support.factories.ranking import RankingPredictModule, seeded
from torchrec_handler.errors import WeightsError
from torchrec_handler.load.weights import checkpoint_root, dense_state, load_dense
from torchrec_handler.tables.find import find_collections

DENSE_NAMES = ["over.0.bias", "over.0.weight", "over.2.bias", "over.2.weight"]

CPU = torch.device("cpu")


def ranking() -> RankingPredictModule:
    return RankingPredictModule(seeded(), "cpu")


class Buffered(torch.nn.Module):
    """What a dense part may keep: a parameter, a half parameter, a buffer, a passing buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.half_weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("passing", torch.zeros(2), persistent=False)


class BufferedPredictModule(PredictModule):
    def predict_forward(self, batch: dict[str, torch.Tensor]) -> Any:
        return self.predict_module(batch)


def buffered() -> BufferedPredictModule:
    return BufferedPredictModule(Buffered(), "cpu")


def state() -> dict[str, torch.Tensor]:
    return {
        "linear.weight": torch.tensor([[1.0, 2.0]]),
        "linear.bias": torch.tensor([3.0]),
        "half_weight": torch.tensor([4.0, 5.0]),
        "mean": torch.tensor([6.0, 7.0]),
        "count": torch.tensor(8),
    }


def error_of(module: torch.nn.Module, dense: dict[str, torch.Tensor]) -> str:
    with pytest.raises(WeightsError) as caught:
        load_dense(module, find_collections(module), dense, CPU)
    return str(caught.value)


def test_names_are_those_of_predict_module_state_dict() -> None:
    """TorchRec's PredictModule gives the inner module's names: a checkpoint loads as it is."""
    module = ranking()
    with pytest.warns(FutureWarning, match="Positional args"):  # TorchRec's own call
        whole = module.state_dict()
    assert sorted(dense_state(module, find_collections(module))) == [
        name for name in sorted(whole) if "over" in name
    ]
    assert sorted(dense_state(module, find_collections(module))) == DENSE_NAMES
    assert checkpoint_root(module) == ("_module.", module.predict_module)


def test_a_module_without_predict_module_has_its_own_names() -> None:
    module = seeded()
    assert checkpoint_root(module) == ("", module)
    assert sorted(dense_state(module, find_collections(module))) == DENSE_NAMES


def test_a_predict_module_that_is_computed_has_its_own_names() -> None:
    """Only a child can lend its names: what is made on the fly has no weights to load."""

    class Computed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(1, 1)

        @property
        def predict_module(self) -> torch.nn.Module:
            return torch.nn.Sequential(self.inner)

    module = Computed()
    assert checkpoint_root(module) == ("", module)
    assert sorted(dense_state(module, find_collections(module))) == ["inner.bias", "inner.weight"]


def test_rows_are_no_dense_weights_however_far_the_module_is() -> None:
    quantized = quantize_inference_model(ranking())
    assert sorted(dense_state(quantized, find_collections(quantized))) == DENSE_NAMES
    set_propogate_device(True)
    sharded, _ = shard_quant_model(quantized, compute_device="cpu", sharding_device="cpu")
    assert sorted(dense_state(sharded, find_collections(sharded))) == DENSE_NAMES


def test_rows_are_no_dense_weights_where_the_collection_is_all_there_is() -> None:
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=3, feature_names=["f"])]
    module = BufferedPredictModule(EmbeddingBagCollection(tables=tables), "cpu")
    assert dense_state(module, find_collections(module)) == {}


def test_a_feature_processor_s_weights_are_dense() -> None:
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=3, feature_names=["f"])]
    collection = FeatureProcessedEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables, is_weighted=True),
        {"f": PositionWeightedModule(max_feature_length=5)},
    )
    module = BufferedPredictModule(torch.nn.Sequential(collection), "cpu")
    assert sorted(dense_state(module, find_collections(module))) == [
        "0._feature_processors.f.position_weight"
    ]


def test_parameters_and_kept_buffers_are_loaded() -> None:
    module = buffered()
    load_dense(module, find_collections(module), state(), CPU)
    loaded = module.predict_module.state_dict()
    assert sorted(loaded) == sorted(state())
    for name, value in state().items():
        assert torch.equal(loaded[name], value.to(loaded[name].dtype)), name


def test_a_parameter_keeps_its_data_type() -> None:
    module = buffered()
    load_dense(module, find_collections(module), state(), CPU)
    assert module.predict_module.half_weight.dtype == torch.float16
    assert module.predict_module.count.dtype == torch.int64


def test_weights_left_on_meta_are_made_real() -> None:
    with torch.device("meta"):
        inner = Buffered()
    module = BufferedPredictModule(inner, "cpu")
    load_dense(module, find_collections(module), state(), CPU)
    assert {value.device.type for value in module.predict_module.state_dict().values()} == {"cpu"}


def test_the_checkpoint_s_tensors_are_not_shared_with_the_module_s_caller() -> None:
    """Loading again another checkpoint leaves the first one as it was."""
    module, first = buffered(), state()
    load_dense(module, find_collections(module), first, CPU)
    load_dense(
        module, find_collections(module), {name: value + 1 for name, value in first.items()}, CPU
    )
    assert all(torch.equal(first[name], value) for name, value in state().items())


def test_every_fault_is_listed_at_once() -> None:
    wrong = state()
    wrong["linear.weights"] = wrong.pop("linear.weight")
    wrong["mean"] = torch.zeros(3)
    wrong["half_weight"] = torch.zeros(2, 1)
    del wrong["count"]
    assert error_of(buffered(), wrong) == (
        "the dense weights do not fit the module: "
        "half_weight: received shape (2, 1), expected (2,); "
        "mean: received shape (3,), expected (2,); "
        "missing: count; missing: linear.weight; unexpected: linear.weights"
    )


def test_a_wrong_checkpoint_changes_nothing() -> None:
    module = buffered()
    before = {
        name: value.clone() for name, value in dense_state(module, find_collections(module)).items()
    }
    error_of(module, {**state(), "more": torch.zeros(1)})
    assert all(
        torch.equal(before[name], value)
        for name, value in dense_state(module, find_collections(module)).items()
    )


def test_state_that_is_no_tensor_is_refused() -> None:
    """safetensors holds tensors only, and a server must not unpickle weights."""

    class Packed(torch.nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"zero_point": 3}

        def set_extra_state(self, state: object) -> None:
            raise AssertionError(state)

    module = BufferedPredictModule(torch.nn.Sequential(torch.nn.Linear(1, 1), Packed()), "cpu")
    with pytest.raises(WeightsError) as caught:
        dense_state(module, find_collections(module))
    assert str(caught.value) == (
        "the module's state holds 1._extra_state, expected tensors only; quantize or lower in "
        "run_weights_dependent_transformations"
    )
