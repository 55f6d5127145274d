"""Of a method that cannot be followed the modules that can be are graphs, and nobody sees it."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from tests.support.archives import good
from tests.support.factories.branching import BranchingFactory
from tests.support.graphs import (
    DENSE,
    FLOAT32,
    WIDTH,
    Batch,
    Small,
    assert_close,
    bags,
    calls,
    copied,
    draw,
    draws,
    keyed,
    norm,
)
from tests.support.sharing import Pair, batches
from torchrec_handler.archive.format import Declined
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.method import EVERY, GraphMethod
from torchrec_handler.kernels.graph.methods import capture_methods
from torchrec_handler.kernels.graph.part import Part, PartForward
from torchrec_handler.kernels.graph.parts import capture_parts
from torchrec_handler.kernels.graph.program import aten
from torchrec_handler.kernels.graph.trials import Trial
from torchrec_handler.load.loader import load_again, read_dense
from torchrec_handler.load.self_test import answer
from torchrec_handler.options import read_options

ROWS = (1, 2, 7, 300)


class Tower(nn.Module):
    """As users write them."""

    def __init__(self, inputs: int = DENSE, width: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.norm = norm(width)
        self.last = nn.Linear(width, width)
        self.slope = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.slope(self.last(nn.functional.gelu(self.norm(self.first(x)))))
        return y


class Of(nn.Module):
    """A module that is a function, with a tower in it."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.tower, self._forward = Tower(), forward
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


class Model(nn.Module):
    """Two towers, and what depends on numbers between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.over = Tower(), Tower(WIDTH + 1)

    def forward(self, x: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        y = self.tower(x)
        if y.sum() > 0:
            y = y * 2
        total = sum(abs(one) for one in pooled.flatten()[:3].tolist())
        found: torch.Tensor = self.over(torch.cat([y, torch.full((len(y), 1), total)], 1))
        return found


def branches(m: Any, b: Batch) -> dict[str, Any]:
    return {"x": m.model(b["x"], m.bags(keyed(b)).values())}


def between() -> Small:
    torch.manual_seed(0)
    return Small(branches, model=Model(), bags=bags())


def parts_of(
    module: nn.Module, stuck: Collection[nn.Module] = ()
) -> tuple[list[Part], list[Declined]]:
    tried = [("forward", Trial(rows, draw(rows, ids=2))) for rows in (1, 2, 7, 16)]
    with torch.inference_mode():
        return capture_parts(module, tried, lambda name, batch: getattr(module, name)(batch), stuck)


def put(module: nn.Module) -> dict[str, PartForward]:
    """Let the parts of a module be graphs at all sizes."""
    placed = {}
    for part in parts_of(module)[0]:
        method = GraphMethod(part.graph, FLOAT32)
        method.trials = part.trials
        with torch.inference_mode():
            assert methods._differs(method, 1e-5) is None
        method.ranges = [*EVERY]
        placed[part.graph.qualname] = PartForward(part.call, method)
        setattr(part.module, "forward", placed[part.graph.qualname])  # noqa: B010
    return placed


def test_what_lies_between_branches_is_a_graph() -> None:
    module, own = between(), between()
    placed = put(module)
    assert list(placed) == ["model.tower", "model.over"]
    used = dict.fromkeys(placed, 0)
    for name, forward in placed.items():
        run = forward.method.compute

        def counted(batch: Any, name: str = name, run: Any = run) -> Any:
            used[name] += 1
            return run(batch)

        forward.method.compute = counted  # type: ignore[method-assign]
        program = forward.method._captured.program
        assert calls(program, aten.batch_norm.default, aten.gelu.default) == []
    asked = 0
    for rows in ROWS:
        for batch in draws(rows):
            asked += 1
            with torch.inference_mode():
                assert_close(module(copied(batch)), own(copied(batch)))
    assert used == dict.fromkeys(placed, asked)


def test_why_the_others_are_none_is_told() -> None:
    """Of the method, and of the module that asks for the number itself."""
    module = between()
    batch = draw(5, ids=2)
    found, (declined,), stuck = capture_methods(
        module, ["forward"], lambda _: Trial(5, batch), {"s": 2}, FLOAT32
    )
    assert found == []
    assert stuck & {*module.modules()} == {module, module.model}
    parts, (of_part,) = parts_of(module, stuck)
    assert [part.graph.qualname for part in parts] == ["model.tower", "model.over"]
    why = "it branches on numbers that it computes"
    assert of_part == Declined(path="model", kernel="graph", why=why)
    assert declined.why.startswith(
        "torch cannot follow it: GuardOnDataDependentSymNode: Could not guard on data-dependent"
    )


def test_who_is_given_the_number_is_followed_alone() -> None:
    """Nobody knows of the module that it branches on numbers which it did not ask for."""
    module = of(
        lambda m, x, y: m.tower(x) * (2 if y else 1),
        lambda m, b: m(b["x"], bool(b["x"].sum() > -1e9)),
    )
    batch = draw(5, ids=2)
    _, _, stuck = capture_methods(module, ["forward"], lambda _: Trial(5, batch), {"s": 2}, FLOAT32)
    assert module.of not in stuck
    assert list(put(module)) == ["of"]


def test_what_fails_as_a_part_is_told() -> None:
    _, declined = parts_of(between())
    (found,) = declined
    assert (found.path, found.kernel) == ("model", "graph")
    assert found.why.startswith(
        "torch cannot follow it: GuardOnDataDependentSymNode: Could not guard on data-dependent"
    )


def of(forward: Callable[..., Any], call: Callable[..., Any]) -> Small:
    torch.manual_seed(0)
    return Small(lambda m, b: {"x": call(m.of, b)}, of=Of(forward), bags=bags())


KEPT: Mapping[str, Small] = {
    "by name": of(lambda m, *, x, scale: m.tower(x) * scale, lambda m, b: m(x=b["x"], scale=2.0)),
    "a list": of(
        lambda m, given, *, scale: m.tower(given[0]) * scale + given[1],
        lambda m, b: m([b["x"], b["x"][:, :WIDTH]], scale=2),
    ),
    "places of each row": of(
        lambda m, x, y: m.tower(x).view(-1, 3, WIDTH).sum(1) + y[:, :WIDTH],
        lambda m, b: m(b["x"].repeat_interleave(3, 0), b["x"]),
    ),
    "several results": of(
        lambda m, x: (m.tower(x), {"x": m.tower(x) * 2}), lambda m, b: m(b["x"])[1]["x"]
    ),
    "twice": of(lambda m, x: m.tower(x), lambda m, b: m(b["x"]) + m(b["x"] * 2)),
    "turned": of(lambda m, x: m.tower(x), lambda m, b: m(b["x"].flip(1)[:, :DENSE])),
    "some of the rows": of(lambda m, x: m.tower(x), lambda m, b: m(b["x"][b["x"][:, 0] > -1])),
}


@pytest.mark.parametrize("module", KEPT.values(), ids=KEPT)
def test_parts_give_what_they_gave(module: Small) -> None:
    with torch.inference_mode():
        expected = [module(copied(batch)) for rows in ROWS for batch in draws(rows)]
        assert list(put(module)) == ["of"]
        received = [module(copied(batch)) for rows in ROWS for batch in draws(rows)]
    for given, wanted in zip(received, expected, strict=True):
        assert_close(given, wanted)


def hooked(module: Small) -> Small:
    module.get_submodule("of.tower").register_forward_hook(lambda *_: None)
    return module


def counts(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.seen.add_(1)
    found: torch.Tensor = m.tower(x) + m.seen
    return found


ALIKE = "is given as many rows whatever the batch"
DECLINED: Mapping[str, tuple[Small, str]] = {
    "hooks": (hooked(of(lambda m, x: m.tower(x), lambda m, b: m(b["x"]))), "Tower has hooks"),
    "buffers": (of(counts, lambda m, b: m(b["x"])), "its attributes change from call to call"),
    "random": (
        of(lambda m, x: m.tower(x) + 1e-9 * torch.rand(WIDTH), lambda m, b: m(b["x"])),
        "draws random numbers",
    ),
    "no tensor": (
        of(lambda m, x: m.tower(x.values()), lambda m, b: m(KeyedTensor(["x"], [DENSE], b["x"]))),
        "is given a KeyedTensor, which is no tensor",
    ),
    "gives no tensor": (
        of(lambda m, x: (m.tower(x), None), lambda m, b: m(b["x"])[0]),
        "gives a NoneType, which is no tensor",
    ),
    "no rows": (
        of(lambda m, x: m.tower(x + torch.ones(2, DENSE)), lambda m, _: m(torch.tensor(1.0))),
        "is given no tensors of ",
    ),
    "its input": (
        of(lambda m, x: (m.tower(x), x[:1]), lambda m, b: m(b["x"])[0]),
        "gives what it is given, which who calls it may write to",
    ),
    "as many rows": (of(lambda m, x: m.tower(x), lambda m, _: m(torch.ones(5, DENSE))), ALIKE),
    "ways": (
        of(lambda m, x, _: m.tower(x), lambda m, b: m(b["x"], len(b["x"]))),
        "is called in more than one way",
    ),
    "rows": (
        of(lambda m, x: m.tower(x) * (2 if len(x) > 5 else 1), lambda m, b: m(b["x"])),
        "it does something else where not ",
    ),
}


@pytest.mark.parametrize(("module", "why"), DECLINED.values(), ids=DECLINED)
def test_a_part_that_can_be_none_is_told(module: Small, why: str) -> None:
    _, declined = parts_of(module)
    assert declined[0].path == "of"
    assert declined[0].why.startswith(why)


def test_another_call_is_the_modules_own() -> None:
    """Other forms, other constants, gradients and few rows that were not tried."""
    module = of(lambda m, x, scale=1: m.tower(x) * scale, lambda m, b: m(b["x"][1:]))
    placed = put(module)["of"]

    def raises(*_: Any) -> Any:
        raise AssertionError

    placed.method = raises  # type: ignore[assignment]
    part: Any = module.get_submodule("of")
    x = torch.ones(7, DENSE)
    asked: list[Callable[[], Any]] = [lambda: part(x, scale=2), lambda: part(x, 2)]
    with torch.inference_mode():
        for call in asked:
            assert call().shape == (7, WIDTH)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            part(torch.ones(7, DENSE + 1))
        with pytest.raises(AssertionError):
            part(x)
    part(x).sum().backward()
    assert part.tower.last.weight.grad is not None


class Middle(nn.Module):
    """A part of a served model."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.over = Tower(5), Tower(WIDTH + 16)

    def forward(self, x: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        y = self.tower(x)
        y = y if y.sum() > 0 else y - y.mean().item()
        found: torch.Tensor = self.over(torch.cat([y, pooled], 1))
        return found


def served(m: Any, b: Any) -> dict[str, torch.Tensor]:
    dense = torch.cat([b["user_dense"], b["item_dense"]], 1)
    pooled = torch.cat([m.user(b["user"]).values(), m.item(b["item"]).values()], 1)
    return {"default": m.middle(dense, pooled).sum(1)}


@pytest.mark.parametrize("is_faster", [True, False])
def test_a_served_model_tells_its_parts(
    monkeypatch: pytest.MonkeyPatch, *, is_faster: bool
) -> None:
    slower = partial(str, "takes 2.00 times as long with 1 rows")
    monkeypatch.setattr(
        methods,
        "_time",
        lambda method: method.ranges.append(EVERY[0]) if is_faster else slower(),
    )
    torch.manual_seed(0)
    served.parts = {"middle": Middle()}  # type: ignore[attr-defined]
    pair = Pair(served)
    report = pair.served.report
    graphs = [(one.path, one.type, one.dtype) for one in report.replaced if one.kernel == "graph"]
    declined = [(one.path, one.why) for one in report.declined if one.kernel == "graph"]
    paths = [f"_module.middle.{name}" for name in ("tower", "over")]
    assert pair.served.graphs == {}
    assert [path for path, _ in declined[:2]] == ["forward", "_module.middle"]
    if is_faster:
        kind = f"{Tower.__module__}.Tower"
        assert graphs == [(path, kind, "float32") for path in paths]
        assert not any(one.kernel == "linear" and "middle" in one.path for one in report.replaced)
    else:
        assert graphs == []
        assert declined[2:] == [(path, slower()) for path in paths]
    for requests in (batches(frozenset("uvabc"), 0), batches(frozenset(), 1)):
        for batch in requests:
            pair.assert_same(batch)


def test_parts_stay_graphs_with_other_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(methods, "_time", lambda method: method.ranges.append(EVERY[0]))
    archive = good.build(tmp_path, factory=BranchingFactory, archive_format="no-archive")
    first = good.load_folder(archive)
    paths = [f"_module.{name}" for name in ("tower", "over")]
    assert list(first.parts) == paths
    dense = {
        name: one * 1.5 + 0.1 for name, one in read_dense(archive / "dense.safetensors").items()
    }
    again = load_again(first, read_options({}), dense)
    off = read_options({"torchrec": {"kernels": {"off": "all"}}})
    expected = load_again(good.load_folder(archive, kernels={"off": "all"}), off, dense)
    assert list(again.parts) == paths
    assert [one.path for one in again.report.replaced if one.kernel == "graph"] == paths
    used = dict.fromkeys(paths, 0)
    for path, forward in again.parts.items():
        assert vars(again.module.get_submodule(path))["forward"] is forward
        run = forward.method.compute

        def counted(batch: Any, path: str = path, run: Any = run) -> Any:
            used[path] += 1
            return run(batch)

        forward.method.compute = counted
    samples = read_samples(archive / "samples.safetensors")
    for sample in samples:
        received, wanted, before = (
            answer(one.module, sample, one.result_metadata, one.device)["default"][0]
            for one in (again, expected, first)
        )
        torch.testing.assert_close(received, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(received, before)
    assert used == dict.fromkeys(paths, len(samples))
