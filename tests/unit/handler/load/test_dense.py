"""The dense part computes in the data type asked for; all else stays as it was.

What is done for CUDA is done here in the CPU's memory, where it gives the same.
"""

from typing import Any

import pytest
import torch
from torchrec.inference.modules import PredictModule, quantize_feature

from tests.support.factories.kinds_base import Batch, KindFactory
from tests.support.factories.kinds_own import OwnTypeFactory
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedFactory,
    SumFactory,
    WeightedFactory,
)
from tests.support.factories.kinds_ranking import DeepFmFactory, DlrmDcnFactory, DlrmFactory
from tests.support.factories.kinds_sequence import SequenceFactory
from tests.support.factories.kinds_two_tower import TwoTowerFactory
from tests.support.kinds import CPU, prepare, random_batch, torchrecs_float16
from torchrec_handler.errors import OptionError
from torchrec_handler.load.dense import lower
from torchrec_handler.options import Options

KINDS = [
    SumFactory,
    WeightedFactory,
    PositionWeightedFactory,
    ManagedFactory,
    SequenceFactory,
    DlrmFactory,
    DlrmDcnFactory,
    DeepFmFactory,
    TwoTowerFactory,
]
CUDA = torch.device("cuda")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LOWERED = [("float16", CPU), ("float16", CUDA), ("bfloat16", CUDA)]
"""Where a data type's weights are converted; on the CPU kernels are for the others."""
TOLERANCE = {"float32": 1e-3, "float16": 3e-3, "bfloat16": 3e-2}


def lowered(
    module: torch.nn.Module, device: torch.device = CUDA, **options: Any
) -> torch.nn.Module:
    lower(module, Options.model_validate(options), device)
    return module


class Around(torch.nn.Module):
    """A model inside a model, as a training job may wrap it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(("dtype", "device"), [("float32", CUDA), *LOWERED])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_in_every_data_type(
    kind: type[KindFactory], dtype: str, device: torch.device
) -> None:
    """Whatever precision its lookups give."""
    inputs = random_batch(kind)
    expected = prepare(kind().create_predict_module())(inputs)["default"]
    for output_dtype in ("float32", "float16"):
        module = prepare(kind().create_predict_module(), tables={"output_dtype": output_dtype})
        lowered(module, device, dense={"dtype": dtype}, tables={"output_dtype": output_dtype})
        received = module(inputs)["default"]
        if dtype != "float32":
            assert received.dtype == DTYPES[dtype]
            assert not torch.equal(received.float(), expected)
        torch.testing.assert_close(received.float(), expected, atol=TOLERANCE[dtype], rtol=1e-2)


@pytest.mark.parametrize(("dtype", "device"), LOWERED)
@pytest.mark.parametrize("kind", [DlrmFactory, DeepFmFactory])
def test_a_model_inside_a_model_is_reached(
    kind: type[KindFactory], dtype: str, device: torch.device
) -> None:
    inputs = random_batch(kind)
    plain = lowered(prepare(kind().create_predict_module()), device, dense={"dtype": dtype})
    wrapped = prepare(kind().predict_module(Around(kind().create_predict_module()._module)))
    lowered(wrapped, device, dense={"dtype": dtype})
    assert torch.equal(wrapped(inputs)["default"], plain(inputs)["default"])
    assert {parameter.dtype for parameter in wrapped.parameters()} == {DTYPES[dtype]}


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("kind", KINDS)
def test_float16_is_what_torchrecs_quantize_dense_gives(
    kind: type[KindFactory], device: torch.device
) -> None:
    """Bit for bit."""
    inputs = random_batch(kind, 40)
    expected = torchrecs_float16(kind)(inputs)["default"]
    assert expected.dtype == torch.float16
    module = lowered(prepare(kind().create_predict_module()), device, dense={"dtype": "float16"})
    assert torch.equal(module(inputs)["default"], expected)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_float16_is_torchrecs_own_function(device: torch.device) -> None:
    """It leaves a hook of its own on what it converts."""
    module = prepare(DlrmFactory().create_predict_module())
    lowered(module, device, dense={"dtype": "float16"})
    hooked = [
        name
        for name, found in module.named_modules()
        if quantize_feature in found._forward_pre_hooks.values()
    ]
    assert hooked == ["_module.dense_arch", "_module.inter_arch", "_module.over_arch"]


@pytest.mark.parametrize(("dtype", "device"), LOWERED)
def test_position_weights_stay_as_they_are(dtype: str, device: torch.device) -> None:
    """They are part of the lookup, whose kernel takes weights of float32 only."""
    inputs = random_batch(PositionWeightedFactory)
    expected = prepare(PositionWeightedFactory().create_predict_module())(inputs)["pooled"]
    module = prepare(PositionWeightedFactory().create_predict_module())
    lowered(module, device, dense={"dtype": dtype})
    assert torch.equal(module(inputs)["pooled"], expected)


@pytest.mark.parametrize(("dtype", "device"), LOWERED)
def test_a_collection_that_stays_float_keeps_its_tables(dtype: str, device: torch.device) -> None:
    inputs = random_batch(OwnTypeFactory)
    module = OwnTypeFactory().create_predict_module()
    expected = module(inputs)["pooled"]
    lowered(module, device, dense={"dtype": dtype})
    assert torch.equal(module(inputs)["pooled"], expected)
    assert module.predict_module.over.weight.dtype == DTYPES[dtype]


class Doubled(torch.nn.Module):
    """No predict module, no tables."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, batch: Batch) -> Batch:
        return {"default": self.dropout(self.layer(batch["float_features"]))}


def test_a_module_that_is_no_predict_module_is_lowered_too() -> None:
    """And put in evaluation mode, which no base class does for it."""
    module = lowered(Doubled().train(), dense={"dtype": "bfloat16"})
    received = module({"float_features": torch.ones(1, 2)})["default"]
    assert received.dtype == torch.bfloat16
    assert not any(found.training for found in module.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_on_the_cpu_nothing_is_added_to_a_call(dtype: str) -> None:
    """The data type is for kernels, which know what pays there."""
    inputs = random_batch(DlrmFactory)
    module = prepare(DlrmFactory().create_predict_module())
    expected = module(inputs)["default"]
    lowered(module, CPU, dense={"dtype": dtype})
    assert torch.equal(module(inputs)["default"], expected)
    assert not any(found._forward_pre_hooks for found in module.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_cpu_float16_lookups_meet_float32_layers(kind: type[KindFactory]) -> None:
    inputs = random_batch(kind)
    expected = prepare(kind().create_predict_module())(inputs)["default"]
    module = prepare(kind().create_predict_module(), tables={"output_dtype": "float16"})
    lowered(module, CPU, tables={"output_dtype": "float16"})
    torch.testing.assert_close(module(inputs)["default"], expected, atol=1e-3, rtol=1e-2)


def test_int8_layers_and_what_was_decided_are_for_the_cpu() -> None:
    with pytest.raises(OptionError) as raised:
        lowered(Doubled(), torch.device("cuda", 1), dense={"dtype": "int8"})
    assert str(raised.value) == (
        "torchrec.dense.dtype: received 'int8' on cuda:1, expected float32, float16 or bfloat16; "
        "int8 is for the CPU"
    )
    with pytest.raises(OptionError) as raised:
        lowered(Doubled(), torch.device("cuda", 1), dense={"dtype": "auto", "max_error": 1})
    assert str(raised.value) == (
        "torchrec.dense.dtype: received 'auto' on cuda:1, expected float32, float16 or bfloat16; "
        "auto is for the CPU"
    )
    with pytest.raises(OptionError) as raised:
        lowered(Doubled(), torch.device("cuda", 1), kernels={"dtype": "int8"})
    assert str(raised.value) == (
        "torchrec.kernels.dtype: received 'int8' on cuda:1, expected float32 or bfloat16; "
        "int8 is for the CPU"
    )


class Deviceless(PredictModule):
    """Without a device, as PredictModule allows."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"default": self.predict_module(batch["float_features"])}


def test_a_predict_module_without_a_device_takes_the_workers() -> None:
    """Its own way is to ask for the current CUDA device at its first call."""
    module = Deviceless(torch.nn.Linear(2, 2))
    devices = [module._device]
    lowered(module, CPU)
    devices.append(module._device)
    assert devices == [None, CPU]
    assert module({"float_features": torch.ones(1, 2)})["default"].shape == (1, 2)
    named = Deviceless(torch.nn.Linear(2, 2), "meta")
    lowered(named, CPU)
    assert named._device == torch.device("meta")


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        lowered(torch.nn.Linear(1, 1), CPU, threads=2)
        assert torch.get_num_threads() == 2
        lowered(torch.nn.Linear(1, 1), CPU)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
