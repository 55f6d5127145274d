"""A graph stands in for a method where it gives the same; what it cannot, the method does."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.exact import examples
from tests.support.graphs import (
    DENSE,
    FLOAT32,
    ROWS,
    WIDTH,
    Small,
    as_graph,
    assert_graph,
    assert_same,
    bags,
    draw,
    keyed,
    layer,
    norm,
)
from torchrec_handler.archive.format import Declined, Sizes
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.method import (
    EVERY,
    GraphMethod,
)
from torchrec_handler.kernels.graph.methods import (
    capture_methods,
    choose,
)
from torchrec_handler.kernels.graph.trials import Trial, differs
from torchrec_handler.kernels.kernel import Target

Batch = Any


class Several(nn.Module):
    """A predict module of several methods."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer()
        self.bags = bags()
        self.eval()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"x": self.layer(batch["x"]), "pooled": self.bags(keyed(batch)).values()}

    def embed(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"user": torch.tanh(self.layer(batch["x"]))}

    def branches(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"x": batch["x"] if batch["x"].sum() > 0 else -batch["x"]}


def trial(_: str) -> Trial:
    return Trial(5, draw(5, ids=2))


def trials(_: str) -> list[Trial]:
    return [Trial(rows, draw(rows, ids=2)) for rows in (1, 7)]


def chosen(module: nn.Module, names: list[str], target: Target = FLOAT32) -> Any:
    graphs, declined, _ = capture_methods(module, names, trial, {"s": 2}, target)
    kept, replaced, late = choose(graphs, module, trials, target, torch.inference_mode)
    return kept, replaced, [*declined, *late]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_time", lambda method: method.ranges.append(EVERY[0]))


@pytest.mark.usefixtures("always")
def test_each_method_is_a_graph_of_its_own() -> None:
    module = Several()
    kept, replaced, declined = chosen(module, ["forward", "embed", "branches"])
    assert list(kept) == ["forward", "embed"]
    assert [(found.path, found.kernel, found.dtype) for found in replaced] == [
        ("forward", "graph", "float32"),
        ("embed", "graph", "float32"),
    ]
    assert [found.path for found in declined] == ["branches"]
    for name, method in kept.items():
        assert_same(method, getattr(module, name))


def test_on_another_device_there_is_none() -> None:
    target = Target(device=torch.device("cuda", 0), dtype="float32")
    kept, replaced, declined = chosen(Several(), ["forward"], target)
    assert (kept, replaced) == ({}, [])
    why = "is for the CPU, not for cuda:0"
    assert declined == [Declined(path="forward", kernel="graph", why=why)]


def test_a_method_that_nothing_was_drawn_for_is_declined() -> None:
    _, declined, _ = capture_methods(Several(), ["forward"], lambda _: None, {"s": 2}, FLOAT32)
    (found,) = declined
    assert found.why == "takes nothing that was drawn for its inputs"


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_graph_is_kept_for_the_sizes_at_which_it_is_no_slower(
    ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 7 rows it is faster; with one as the ratio says."""

    def seconds(call: Callable[..., Any], batch: Any) -> float:
        is_graph = getattr(call, "__name__", "") == "compute"
        return 1 / ratio if is_graph and len(batch["x"]) == 1 else 1.0

    monkeypatch.setattr(methods, "_seconds", seconds)
    kept, (replaced,), declined = chosen(Several(), ["forward"])
    assert declined == []
    assert kept["forward"].ranges == (EVERY if ratio > 1 else [(3, float("inf"))])
    assert replaced.sizes == (() if ratio > 1 else (Sizes(least=3),))
    assert_same(kept["forward"], Several().forward)


@pytest.mark.parametrize(("ratios", "times"), [([2.0], 3), ([0.5], 3), ([2.0, 0.5], 15)])
def test_a_size_is_timed_until_it_is_clear(
    ratios: list[float], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a method takes, of its graph's time, in turns."""
    taken: list[int] = []

    def seconds(call: Callable[..., Any], batch: Any) -> float:
        if getattr(call, "__name__", "") == "compute":
            return 1.0
        taken.append(len(batch["x"]))
        return ratios[len(taken) % len(ratios)]

    monkeypatch.setattr(methods, "_seconds", seconds)
    monkeypatch.setattr(methods, "SECONDS", 60)
    chosen(Several(), ["forward"])
    assert {rows: taken.count(rows) for rows in (1, 7)} == {1: times, 7: times}


def test_where_a_graph_is_slower_throughout_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        methods, "_seconds", lambda call, _: 2.0 if call.__name__ == "compute" else 1.0
    )
    kept, replaced, declined = chosen(Several(), ["forward"])
    assert (kept, replaced) == ({}, [])
    assert [found.why for found in declined] == [
        "takes 2.00 times as long with 1 rows, 2.00 times as long with 7 rows"
    ]


def test_what_a_graph_raises_nobody_sees() -> None:
    """The method is asked, whose answer or error it is."""
    module = Several()
    method = as_graph(module)
    assert isinstance(method, GraphMethod)

    def raises(*_: Any) -> Any:
        message = "the graph's own"
        raise RuntimeError(message)

    method._run = raises  # type: ignore[assignment]
    assert torch.equal(method(draw(7))["x"], module(draw(7))["x"])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        method({**draw(7), "x": torch.ones(7, DENSE + 1)})


def test_a_batch_with_other_inputs_is_the_methods_own() -> None:
    method = as_graph(Several())
    assert isinstance(method, GraphMethod)
    with pytest.raises(KeyError, match=r"s\.lengths"):
        method({"x": torch.ones(7, DENSE), "s.values": torch.ones(9).int()})


def test_outputs_are_nobody_elses() -> None:
    """Whoever writes to an answer changes no later one, nor the module."""
    module = Small(
        lambda m, b: {"x": m.layer(b["x"]), "buffer": m.buffer * 2, "ones": torch.ones(3)},
        layer=layer(),
        buffer=torch.randn(WIDTH),
    )
    method = as_graph(module)
    assert isinstance(method, GraphMethod)
    expected = {name: tensor.clone() for name, tensor in method(draw(7)).items()}
    for tensor in method(draw(7)).values():
        tensor.fill_(7)
    for name, tensor in method(draw(7)).items():
        assert torch.equal(tensor, expected[name]), name


DIFFERENT = [
    (torch.ones(3), torch.ones(2), "gives (2,) torch.float32 with 9 rows, the module (3,) "),
    (torch.ones(2), torch.ones(2).double(), "gives (2,) torch.float64 with 9 rows, the module "),
    (torch.ones(2), torch.ones(2) + 1e-4, "is 0.0001 off the module with 9 rows, at most 1e-05 is"),
    (torch.ones(2).int(), torch.zeros(2).int(), "gives other torch.int32 than the module with 9"),
    *(
        (
            torch.tensor(wanted),
            torch.tensor(given),
            "is not finite where the module is, with 9 rows",
        )
        for wanted, given in (
            ([1.0, torch.inf], [1.0, 2.0]),
            ([torch.inf], [-torch.inf]),
            ([torch.nan], [torch.inf]),
        )
    ),
]


@pytest.mark.parametrize(("expected", "received", "why"), DIFFERENT)
def test_what_differs_is_told(expected: torch.Tensor, received: torch.Tensor, why: str) -> None:
    found = differs([expected], [received], 9, 1e-5)
    assert found is not None
    assert found.startswith(why)
    assert differs([expected], [expected.clone()], 9, 1e-5) is None


def test_a_batch_may_hold_its_inputs_in_any_order() -> None:
    """As the samples of an archive do, beside lists of tensors."""
    module = Small(lambda m, b: {"x": m.layer(b["x"]) - b["e"][0] + 2 * b["e"][1]}, layer=layer())
    batch: Any = {**draw(5, ids=2), "e": [torch.randn(5, WIDTH), torch.randn(5, WIDTH)]}
    (graph,), _, _ = capture_methods(
        module, ["forward"], lambda _: Trial(5, batch), {"s": 2}, FLOAT32
    )
    method = GraphMethod(graph, FLOAT32)
    turned = dict(reversed(batch.items()))
    with torch.inference_mode():
        found = method.compute(turned)["x"]
        torch.testing.assert_close(found, module(batch)["x"], atol=1e-5, rtol=0)


def test_what_is_never_a_number_is_the_same() -> None:
    expected = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert differs([expected], [expected.clone()], 9, 1e-5) is None


class Drawn(nn.Module):
    """A module of steps drawn one behind another; each reads what was there before."""

    def __init__(self, steps: list[tuple[int, int, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.bags = bags()
        self.first = layer()
        self.steps = steps
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=bool(at % 3)) for at in range(3)])
        self.wide = nn.ModuleList([nn.Linear(2 * WIDTH, WIDTH) for _ in range(2)])
        self.norms = nn.ModuleList([norm(WIDTH), norm(WIDTH)])
        self.layer_norm = nn.LayerNorm(WIDTH)
        self.activations = nn.ModuleList(
            [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(inplace=True), nn.PReLU()]
        )
        self.eval()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        pooled = self.bags(keyed(batch)).values()
        found = [self.first(batch["x"]), *pooled.split(WIDTH, 1), batch["x"][:, :WIDTH]]
        for kind, left, right in self.steps:
            found.append(self.step(kind, found[left % len(found)], found[right % len(found)]))
        return {str(at): x for at, x in enumerate(found[-3:])}

    def step(self, kind: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[B, WIDTH], of two of them; kept small, so that rounding is no difference."""
        cases: list[Callable[[], torch.Tensor]] = [
            *(lambda part=part: part(x) for part in (*self.layers, *self.norms, self.layer_norm)),
            *(lambda part=part: part(x + 0) for part in self.activations),
            lambda: torch.relu(self.layers[0](x)),
            lambda: self.wide[0](torch.cat([x, y], 1)),
            lambda: self.wide[1](torch.cat([x, x - y], 1)),
            lambda: torch.cat([x, y], 1)[:, 2 : 2 + WIDTH],
            lambda: torch.cat([*torch.cat([x, y], 1).chunk(2, 1)[1:]], 1),
            lambda: torch.tanh(x) * torch.sigmoid(y),
            lambda: x + y,
            lambda: torch.softmax(x, -1),
            lambda: torch.where(x > 2, y, x),
            lambda: (x - y).masked_fill_(x > 3, 0.5),
            lambda: torch.stack([x, y], 1).sum(1),
            lambda: (x.view(-1, 2, 2) @ torch.tanh(y).view(-1, 2, 2)).flatten(1),
        ]
        return torch.tanh(cases[kind % len(cases)]() / 3) * 3


STEPS = st.lists(
    st.tuples(st.integers(0, 22), st.integers(0, 30), st.integers(0, 30)), min_size=3, max_size=9
)


@examples(0.03)
@given(steps=STEPS, seed=st.integers(0, 999))
def test_whatever_a_module_is_made_of(steps: list[tuple[int, int, int]], seed: int) -> None:
    assert_graph(Drawn(steps, seed))


@pytest.mark.parametrize("rows", ROWS)
def test_a_module_under_no_grad_alone(rows: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    module = Several()
    method = as_graph(module)
    assert isinstance(method, GraphMethod)
    with torch.no_grad():
        torch.testing.assert_close(method(draw(rows)), module(draw(rows)), atol=1e-5, rtol=0)
    # torch says something of TorchRec's once a process, in whatever test is the first.
    own = [one.message for one in caplog.records if one.name.startswith("torchrec_handler")]
    assert own == []
