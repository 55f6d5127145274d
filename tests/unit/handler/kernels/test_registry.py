"""What every kernel promises, of each in `registry.KERNELS`: a new one is tested by being added.

A kernel takes a part of one of `MODELS` at least; whoever adds one that knows none of them adds a
model that it knows.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.crossnet import CrossNet
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import seeded, table
from tests.support.kinds import CPU, prepare
from torchrec_handler.errors import OptionError
from torchrec_handler.kernels import registry
from torchrec_handler.kernels.kernel import Declined, Forward, Replaced, Report, Target
from torchrec_handler.kernels.registry import check_names, replace_forwards
from torchrec_handler.options import PRECISIONS, KernelDtype, Kernels

DTYPES: tuple[KernelDtype, ...] = ("float32", "bfloat16", "int8")
TOLERANCES: Mapping[str | None, float] = {
    None: 0.0,
    "float32": 2e-6,
    "float16": 1e-2,
    "bfloat16": 2e-2,
    "int8": 4e-2,
}
"""How far an output may be off, in units of the largest."""
ROWS = (1, 12, 64, 1_024)
"""One, and the fewest that each kind of packed layers is for, and a whole block."""
WIDTH, DENSE, IDS = 64, 20, 50
FEATURES = ("user", "movie", "genre")


class Ranker(torch.nn.Module):
    """A user's own model: a collection, a cross net and layers."""

    def __init__(self, collection: Any) -> None:
        super().__init__()
        width = len(FEATURES) * WIDTH + DENSE
        self.collection = collection
        self.cross = CrossNet(width, 2)
        self.layers = torch.nn.Sequential(MLP(width, [256, 128]), torch.nn.Linear(128, 1))

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        pooled = self.collection(sparse).values()
        found: torch.Tensor = self.layers(self.cross(torch.cat([dense, pooled], dim=1)))
        return found


def dlrm(collection: Any) -> torch.nn.Module:
    model: torch.nn.Module = DLRM(
        embedding_bag_collection=collection,
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[512, 256, WIDTH],
        over_arch_layer_sizes=[256, 128, 1],
    )
    return model


def dlrm_dcn(collection: Any) -> torch.nn.Module:
    model: torch.nn.Module = DLRM_DCN(
        embedding_bag_collection=collection,
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[256, WIDTH],
        over_arch_layer_sizes=[256, 128, 1],
        dcn_num_layers=2,
        dcn_low_rank_dim=128,
    )
    return model


MODELS: Mapping[str, Callable[[Any], torch.nn.Module]] = {
    "dlrm": dlrm,
    "dlrm-dcn": dlrm_dcn,
    "own": Ranker,
}
"""Each takes dense features [B, DENSE] and sparse ones."""


def model(name: str) -> Any:
    """As `make_ready` hands it to the kernels: int8 tables, sharded, with its rows."""
    configs = [table(feature, IDS, width=WIDTH) for feature in FEATURES]
    made = MODELS[name](EmbeddingBagCollection(tables=configs, device=CPU))
    return prepare(torch.nn.ModuleList([seeded(made, 0)]))


def inputs(rows: int) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    random = torch.Generator().manual_seed(rows)
    lengths = torch.randint(0, 4, (len(FEATURES) * rows,), generator=random).int()
    ids = torch.randint(0, IDS, (int(lengths.sum()),), generator=random).int()
    sparse = KeyedJaggedTensor(keys=list(FEATURES), lengths=lengths, values=ids)
    return torch.randn(rows, DENSE, generator=random), sparse


def replace(module: torch.nn.Module, dtype: KernelDtype = "float32", off: Any = ()) -> Report:
    kernels = Kernels(off=off if off == "all" else list(off))
    return replace_forwards(module, Target(device=CPU, dtype=dtype), kernels)


NAMES = [kernel.name for kernel in registry.KERNELS]


def all_but(kernel: str) -> list[str]:
    return [name for name in NAMES if name != kernel]


@cache
def stock(name: str, rows: int) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(name)[0](*inputs(rows))
    return found


@cache
def alone(kernel: str, dtype: KernelDtype) -> Mapping[str, tuple[Any, Report]]:
    """The models of which a kernel takes a part, with that kernel and no other."""
    found = {}
    for name in MODELS:
        module = model(name)
        report = replace(module, dtype, all_but(kernel))
        if report.replaced:
            found[name] = module, report
    assert found, f"no model in MODELS has a part that {kernel} takes, add one"
    return found


def with_own_forward(module: torch.nn.Module) -> set[str]:
    return {path for path, found in module.named_modules() if "forward" in vars(found)}


each_kernel = pytest.mark.parametrize("kernel", NAMES)


@each_kernel
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_equals_what_it_replaces(kernel: str, dtype: KernelDtype, rows: int) -> None:
    for name, (module, report) in alone(kernel, dtype).items():
        expected = stock(name, rows)
        with torch.inference_mode():
            received = module[0](*inputs(rows))
        assert received.shape == expected.shape
        assert received.dtype == expected.dtype
        allowed = max(TOLERANCES[found.dtype] for found in report.replaced)
        assert (received - expected).abs().max() <= allowed * expected.abs().max(), name


@each_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_is_named_in_the_report(kernel: str, dtype: KernelDtype) -> None:
    """Beside every module with another forward, in a type that is allowed."""
    for module, report in alone(kernel, dtype).values():
        assert {found.path for found in report.replaced} == with_own_forward(module)
        for found in report.replaced:
            assert found.kernel == kernel
            assert found.type == torch.typename(module.get_submodule(found.path))
            allowed = PRECISIONS[: PRECISIONS.index(dtype) + 1]
            assert found.dtype is None or found.dtype in allowed


@each_kernel
def test_a_kernel_that_is_off_is_gone(kernel: str) -> None:
    """By its name, by all names, and by `all`: forwards are TorchRec's own."""
    for name in alone(kernel, "float32"):
        without = replace(model(name), off=[kernel])
        assert kernel not in {found.kernel for found in without.replaced + without.declined}
        for off in (NAMES, "all"):
            module = model(name)
            assert replace(module, off=off) == Report()
            assert with_own_forward(module) == set()
            with torch.inference_mode():
                assert torch.equal(module[0](*inputs(12)), stock(name, 12))


class Scaled(torch.nn.Module):
    """A user's own layer, around another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mul(self.inner(x), self.scale)


class ScaledKernel:
    """A kernel as a user adds it: one class, one entry."""

    name = "scaled"

    def offer(self, module: torch.nn.Module, target: Target) -> Forward | str | None:
        if not isinstance(module, Scaled):
            return None
        if module.scale == 0:
            return "its scale is 0"
        inner, scale = module.inner, module.scale
        return Forward(call=lambda x: inner(x) * scale, dtype=target.dtype, calls=("inner",))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "KERNELS", [ScaledKernel(), *registry.KERNELS])


SCALED = f"{Scaled.__module__}.Scaled"
LINEAR = Replaced(
    path="0.inner", type="torch.nn.modules.linear.Linear", kernel="linear", dtype="float32"
)


@pytest.mark.usefixtures("added")
def test_a_kernel_is_added_by_one_class_and_one_entry() -> None:
    """It is asked first, goes on calling what it names, is reported, and can be left out."""
    first = Replaced(path="0", type=SCALED, kernel="scaled", dtype="float32")
    for off, replaced in (([], (first, LINEAR)), (["scaled"], (LINEAR,)), (["linear"], (first,))):
        module = torch.nn.ModuleList([Scaled()]).eval()
        x = torch.randn(3, 8)
        with torch.inference_mode():
            expected = module[0](x)
            assert replace(module, off=off) == Report(replaced=replaced)
            torch.testing.assert_close(module[0](x), expected)
    check_names(Kernels(off=["scaled", "once"]))
    with pytest.raises(OptionError) as caught:
        check_names(Kernels(off=["scaled", "twice"]))
    assert str(caught.value) == (
        "torchrec.kernels.off: received 'twice', "
        "expected 'all' or a list of graph, scaled, dlrm, crossnet, linear, direct, once"
    )


@pytest.mark.usefixtures("added")
def test_what_a_kernel_declines_goes_to_the_next_ones() -> None:
    scaled = Scaled()
    scaled.scale = 0.0
    module = torch.nn.ModuleList([scaled]).eval()
    declined = Declined(path="0", kernel="scaled", why="its scale is 0")
    assert replace(module) == Report(replaced=(LINEAR,), declined=(declined,))


@pytest.mark.usefixtures("added")
def test_a_kernel_that_raises_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    module = torch.nn.ModuleList([Scaled()]).eval()
    del module[0].scale
    why = "raised AttributeError: 'Scaled' object has no attribute 'scale'"
    declined = Declined(path="0", kernel="scaled", why=why)
    assert replace(module) == Report(replaced=(LINEAR,), declined=(declined,))
    assert caplog.messages == ["kernels: scaled raised on 0"]


def linear(size: int = 8) -> torch.nn.Linear:
    return torch.nn.Linear(size, size)


def hooked(module: Any) -> Any:
    module.register_forward_hook(lambda *_: None)
    return module


def with_forward(module: Any) -> Any:
    module.forward = lambda x: x
    return module


def unnormed() -> Any:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(linear())


OWN = "has a forward of its own, which somebody gave to this one module"
DECLINED: Mapping[str, tuple[Any, list[str]]] = {
    "own forward": (with_forward(linear()), [f"0: {OWN}"]),
    "own forward of a part": (
        torch.nn.Sequential(linear(), with_forward(linear())),
        [f"0: Linear {OWN}", f"0.1: {OWN}"],
    ),
    "hooks": (torch.nn.Sequential(linear(), hooked(torch.nn.ReLU())), ["0: ReLU has hooks"]),
    "hooks, said once": (
        torch.nn.Sequential(torch.nn.Sequential(linear(), hooked(linear())), linear()),
        ["0: Linear has hooks"],
    ),
    "data type": (
        torch.nn.Sequential(linear().half()),
        ["0: its weights are float16 on cpu, expected float32 on the CPU"],
    ),
    "computed weight": (linear, ["0: its weight is computed anew at each call"]),
    "activation": (
        MLP(8, [8, 8], activation="sigmoid"),
        ["0: computes Linear and sigmoid, expected Linear, and ReLU or none"],
    ),
    "cross net": (
        CrossNet(8, 1).double(),
        ["0: its weights are float64 on cpu, expected float32 on the CPU"],
    ),
    "unknown": (torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1)), []),
}


@pytest.mark.parametrize(("module", "said"), DECLINED.values(), ids=DECLINED)
def test_what_is_declined_is_told_with_why(module: Any, said: list[str]) -> None:
    """Of a whole, and not again of its parts for the same reason."""
    if module is linear:
        module = unnormed()
    report = replace(torch.nn.ModuleList([module]))
    assert [f"{found.path}: {found.why}" for found in report.declined] == said


def test_a_guarded_dlrm_is_taken_in_its_pieces() -> None:
    module = model("dlrm")
    hooked(module[0].sparse_arch.embedding_bag_collection)
    report = replace(module)
    assert report.declined == (
        Declined(
            path="0",
            kernel="dlrm",
            why="ShardedBags has hooks, which may check rows that the model itself makes",
        ),
    )
    assert {found.path: found.kernel for found in report.replaced} == {
        "0.sparse_arch": "dlrm",
        "0.sparse_arch.embedding_bag_collection": "direct",
        "0.dense_arch": "linear",
        "0.over_arch": "linear",
    }


def test_elsewhere_than_on_the_cpu_nothing_is_replaced() -> None:
    module = model("dlrm-dcn")
    target = Target(device=torch.device("cuda", 0), dtype="float32")
    report = replace_forwards(module, target, Kernels())
    assert report.replaced == ()
    assert {found.why for found in report.declined} == {"is for the CPU, not for cuda:0"}
    assert {found.kernel for found in report.declined} == set(NAMES)
    assert with_own_forward(module) == set()
