"""What is known is computed in fewer calls, and gives what it gave; all else stays as it is."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torchrec.models.dlrm import DLRM, DLRM_Projection
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, VectorCrossNet
from torchrec.modules.mlp import MLP, Perceptron

from tests.support.factories.kinds_base import KindFactory, seeded
from tests.support.factories.kinds_ranking import DENSE, DeepFmFactory, DlrmDcnFactory, DlrmFactory
from tests.support.kinds import CPU, KINDS, prepare, random_batch
from torchrec_handler.kernels import products
from torchrec_handler.kernels.crossnet import CrossNet as FusedCrossNet
from torchrec_handler.kernels.direct import why_not
from torchrec_handler.kernels.kernel import Report, Target
from torchrec_handler.kernels.registry import replace_forwards
from torchrec_handler.load.dense import lower
from torchrec_handler.options import DenseDtype, KernelDtype, Kernels, Options
from torchrec_handler.tables.find import is_collection

DTYPES: tuple[KernelDtype, ...] = ("float32", "bfloat16", "int8")
TOLERANCES: dict[KernelDtype, float] = {"float32": 1e-5, "bfloat16": 5e-2, "int8": 5e-2}
"""Relative and absolute, of outputs around 1."""


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds are so small that no layer of theirs would be packed."""
    monkeypatch.setattr(products, "PACKED_WEIGHTS", 0)
    monkeypatch.setattr(products, "INT8_WEIGHTS", 0)
    for name in ("bfloat16", "int8"):
        monkeypatch.setitem(products.WORK, name, 0)


def fuse(module: torch.nn.Module, dtype: KernelDtype) -> Report:
    return replace_forwards(module, Target(device=CPU, dtype=dtype), Kernels())


def fused(module: torch.nn.Module, dtype: DenseDtype = "float32") -> torch.nn.Module:
    options = Options.model_validate({"dense": {"dtype": dtype}})
    lower(module, options, CPU)
    fuse(module, options.kernel_dtype)
    return module


def forwards(module: torch.nn.Module) -> Counter[str]:
    """How many modules but collections have been given a forward, by what it is."""
    return Counter(
        type(found.forward).__name__
        for found in module.modules()
        if "forward" in vars(found) and not is_collection(found)
    )


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_gives_what_it_gave(kind: type[KindFactory]) -> None:
    plain = prepare(kind().create_predict_module())
    for dtype in DTYPES:
        module = fused(prepare(kind().create_predict_module()), dtype)
        for rows in (1, 13, 65):
            inputs = random_batch(kind, rows)
            expected, received = plain(inputs), module(inputs)
            assert received.keys() == expected.keys()
            for name, value in expected.items():
                assert received[name].dtype == torch.float32
                tolerance = TOLERANCES[dtype]
                torch.testing.assert_close(received[name], value, atol=tolerance, rtol=tolerance)


FUSED: dict[str, dict[str, int]] = {
    "sum": {"Layers": 1},
    "weighted": {"Layers": 1},
    "position-weighted": {"Layers": 1},
    "managed": {"Layers": 1},
    "sequence": {"Layers": 1},
    "dlrm": {"Dlrm": 1, "SparseArch": 1},
    "dlrm-dcn": {"CrossNet": 1, "Layers": 2, "SparseArch": 1},
    "deepfm": {"Layers": 3},
    "two-tower": {"Layers": 2},
}


@pytest.mark.parametrize("name", FUSED)
def test_what_is_known_of_every_kind(name: str) -> None:
    module = fused(prepare(KINDS[name]().create_predict_module()))
    assert forwards(module) == FUSED[name]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_dense_part_in_float16_stays_as_it_was_lowered(kind: type[KindFactory]) -> None:
    """It is TorchRec's `quantize_dense`'s; lookups are called directly all the same."""
    inputs = random_batch(kind, 30)
    module = prepare(kind().create_predict_module())
    lower(module, Options.model_validate({"dense": {"dtype": "float16"}}), CPU)
    expected = module(inputs)
    lookups = [found for found in module.modules() if why_not(found) is None]
    fuse(module, "int8")
    assert forwards(module).keys() <= {"SparseArch"}
    assert all("forward" in vars(found) for found in lookups)
    received = module(inputs)
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(received[name], value)


@pytest.mark.parametrize("kind", [DlrmFactory, DlrmDcnFactory])
def test_sparse_archs_are_fused_whatever_the_dense_parts_type(kind: type[KindFactory]) -> None:
    module = fused(prepare(kind().create_predict_module()), "float16")
    assert forwards(module) == {"SparseArch": 1}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [DlrmFactory, DlrmDcnFactory, DeepFmFactory])
def test_modules_and_weights_stay_where_they_are(
    kind: type[KindFactory], dtype: KernelDtype
) -> None:
    """Names, types, values, and the memory that they are in."""
    module = prepare(kind().create_predict_module())
    lower(module, Options(), CPU)
    names = [name for name, _ in module.named_modules()]
    weights = dict(module.named_parameters())
    values = copy.deepcopy(weights)
    fuse(module, dtype)
    assert [name for name, _ in module.named_modules()] == names
    after = dict(module.named_parameters())
    assert after.keys() == weights.keys()
    for name, weight in after.items():
        assert weight is weights[name]
        assert torch.equal(weight, values[name])


def linear(inputs: int = 128, outputs: int = 128, *, bias: bool = True) -> torch.nn.Linear:
    return torch.nn.Linear(inputs, outputs, bias=bias)


WHOLE: dict[str, torch.nn.Module] = {
    "linear": linear(),
    "linear without a bias": linear(bias=False),
    "perceptron": Perceptron(128, 64),
    "perceptron with a module": Perceptron(128, 64, activation=torch.nn.ReLU()),
    "perceptron without activation": Perceptron(128, 64, activation=torch.nn.Identity()),
    "mlp": MLP(128, [200, 64]),
    "mlp without a bias": MLP(128, [200, 64], bias=False),
    "mlp without a last activation": MLP(128, [200, 64], activation_on_last=False),
    "sequential": torch.nn.Sequential(
        linear(), torch.nn.ReLU(), torch.nn.Dropout(0.5), linear(), torch.nn.Identity()
    ),
    "nested": torch.nn.Sequential(MLP(128, [64]), torch.nn.Sequential(linear(64, 128)), linear()),
    "two activations": torch.nn.Sequential(MLP(128, [64]), torch.nn.ReLU()),
}


@pytest.mark.parametrize("rows", [1, 20, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("module", WHOLE.values(), ids=WHOLE)
def test_layers_behind_each_other_are_one(
    module: torch.nn.Module, dtype: KernelDtype, rows: int
) -> None:
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows))
    model = torch.nn.ModuleDict({"layers": copy.deepcopy(seeded(module, 0))}).eval()
    with torch.inference_mode():
        expected = model["layers"](x)
        fuse(model, dtype)
        assert forwards(model) == {"Layers": 1}
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(model["layers"](x), expected, atol=tolerance, rtol=tolerance)


PARTS: dict[str, tuple[torch.nn.Module, int]] = {
    "sigmoid": (MLP(128, [64, 64], activation="sigmoid"), 2),
    "swish": (MLP(128, [64, 64], activation="swish_layernorm"), 2),
    "norm between": (torch.nn.Sequential(linear(), torch.nn.LayerNorm(128), linear()), 2),
    "activation first": (torch.nn.Sequential(torch.nn.ReLU(), linear()), 1),
    "convolution": (torch.nn.Sequential(torch.nn.Conv1d(1, 1, 3)), 0),
    "embedding": (torch.nn.Embedding(3, 4), 0),
    "half precision": (torch.nn.Sequential(linear().half(), torch.nn.ReLU()), 0),
    "subclass": (torch.nn.modules.linear.NonDynamicallyQuantizableLinear(128, 128), 0),
    "parametrized": (torch.nn.utils.parametrizations.weight_norm(linear()), 0),
    "attention": (torch.nn.MultiheadAttention(128, 2), 0),
    "vector cross net": (VectorCrossNet(128, 2), 0),
    "nothing": (torch.nn.Sequential(), 0),
}


@pytest.mark.parametrize(("module", "count"), PARTS.values(), ids=PARTS)
def test_of_what_is_not_known_the_known_parts_are_taken(
    module: torch.nn.Module, count: int
) -> None:
    """And of what is lowered by others nothing."""
    model = copy.deepcopy(module).eval()
    if takes_floats := not isinstance(module, torch.nn.Embedding | torch.nn.MultiheadAttention):
        dtype = next((weight.dtype for weight in module.parameters()), torch.float32)
        x = torch.randn(5, 1 if isinstance(module, torch.nn.Conv1d) else 128).to(dtype)
        x = x.unsqueeze(1) if "Conv1d" in str(module) else x
    with torch.inference_mode():
        expected = model(x) if takes_floats else None
        fuse(model, "float32")
        assert forwards(model) == ({"Layers": count} if count else {})
        if takes_floats:
            torch.testing.assert_close(model(x), expected)


def test_hooks_are_called() -> None:
    """On layers that others would swallow too."""
    seen: list[str] = []
    model = torch.nn.Sequential(linear(), torch.nn.ReLU(), linear()).eval()
    model[1].register_forward_hook(lambda *_: seen.append("behind"))
    model[2].register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("whole"))
    x = torch.randn(3, 128)
    with torch.inference_mode():
        expected = model(x)
        fuse(model, "float32")
        torch.testing.assert_close(model(x), expected)
    assert seen == ["behind", "before", "whole"] * 2
    assert forwards(model) == {"Layers": 2}


@pytest.mark.parametrize("arch", ["dense_arch", "sparse_arch", "inter_arch", "over_arch"])
def test_a_dlrm_with_a_hook_is_left_in_its_pieces(arch: str) -> None:
    inputs = random_batch(DlrmFactory, 30)
    module = prepare(DlrmFactory().create_predict_module())
    seen: list[str] = []
    hooked = module.get_submodule(f"_module.{arch}")
    hooked.register_forward_hook(lambda *_: seen.append(arch))
    expected = module(inputs)["default"]
    torch.testing.assert_close(fused(module)(inputs)["default"], expected)
    assert seen == [arch] * 2
    assert forwards(module) == {"SparseArch": 1, "Layers": 2}


class Tied(torch.nn.Module):
    """Layers whose parts the model itself uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(linear(), torch.nn.ReLU(), linear())
        self.again = self.layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, relu, last = self.layers
        assert isinstance(first, torch.nn.Linear)
        back = torch.nn.functional.linear(last(relu(first(x))), first.weight.t())
        again: torch.Tensor = self.again(back)
        return again


def test_a_model_may_use_the_parts_of_what_is_one() -> None:
    model = Tied().eval()
    x = torch.randn(4, 128)
    with torch.inference_mode():
        expected = model(x)
        fuse(model, "float32")
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("rows", [1, 20, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "module", [CrossNet(128, 3), LowRankCrossNet(128, 3, 64)], ids=["full", "low rank"]
)
def test_cross_nets(module: torch.nn.Module, dtype: KernelDtype, rows: int) -> None:
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows)) / 2
    model = torch.nn.ModuleDict({"net": copy.deepcopy(seeded(module, 0))})
    with torch.inference_mode():
        expected = model["net"](x)
        fuse(model, dtype)
        assert isinstance(model["net"].forward, FusedCrossNet)
        received = model["net"](x)
    torch.testing.assert_close(
        received / expected.abs().max(),
        expected / expected.abs().max(),
        atol=TOLERANCES[dtype],
        rtol=0,
    )


class ProjectionFactory(DlrmFactory):
    """DLRM with projections."""

    def model(self, tables_device: torch.device) -> Any:
        return DLRM_Projection(
            embedding_bag_collection=self.collection(tables_device),
            dense_in_features=DENSE,
            dense_arch_layer_sizes=[16, 8],
            over_arch_layer_sizes=[16, 1],
            interaction_branch1_layer_sizes=[16, 16],
            interaction_branch2_layer_sizes=[16, 16],
        )


def test_other_dlrms_are_taken_in_their_pieces() -> None:
    inputs = random_batch(ProjectionFactory, 30)
    module = prepare(ProjectionFactory().create_predict_module())
    expected = module(inputs)["default"]
    torch.testing.assert_close(fused(module)(inputs)["default"], expected)
    assert forwards(module) == {"SparseArch": 1, "Layers": 4}


class Sub(DLRM):
    """A user's own, whose forward is not known."""


class SubFactory(DlrmFactory):
    """A model that only looks like DLRM."""

    def model(self, tables_device: torch.device) -> Any:
        return Sub(
            embedding_bag_collection=self.collection(tables_device),
            dense_in_features=DENSE,
            dense_arch_layer_sizes=[16, 8],
            over_arch_layer_sizes=[16, 1],
        )


def test_a_subclass_is_taken_in_its_pieces() -> None:
    module = fused(prepare(SubFactory().create_predict_module()))
    assert forwards(module) == {"SparseArch": 1, "Layers": 2}


def test_classes_that_came_out_of_a_package_are_known() -> None:
    """Their modules' names begin with the package's."""
    packaged = type("MLP", (MLP,), {"__module__": "<torch_package_7>.torchrec.modules.mlp"})
    model = torch.nn.ModuleDict({"layers": packaged(128, [64])}).eval()
    x = torch.randn(3, 128)
    with torch.inference_mode():
        expected = model["layers"](x)
        fuse(model, "float32")
        assert forwards(model) == {"Layers": 1}
        torch.testing.assert_close(model["layers"](x), expected)
