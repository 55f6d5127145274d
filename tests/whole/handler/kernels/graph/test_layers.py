"""Layers take in what is around them, siblings are one, and no number changes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.graphs import (
    DENSE,
    WIDTH,
    Forward,
    Small,
    assert_graph,
    calls,
    captured,
    layer,
    norm,
)
from torchrec_handler.kernels.graph.layers import ACTIVATION, linear
from torchrec_handler.kernels.graph.methods import reduce
from torchrec_handler.kernels.graph.program import Program, aten


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "layer": layer(),
        "own": layer(WIDTH),
        "second": layer(WIDTH),
        "plain": nn.Linear(WIDTH, WIDTH, bias=False),
        "wide": layer(3, WIDTH),
        "before": norm(DENSE),
        "after": norm(WIDTH),
        "two": norm(2),
        "untrained": nn.BatchNorm1d(WIDTH, affine=False),
        "unseen": nn.BatchNorm1d(WIDTH, track_running_stats=False),
        "slope": nn.PReLU(),
        "slopes": nn.PReLU(WIDTH, init=0.1),
        "square": layer(WIDTH, WIDTH),
    }


def reduced(forward: Forward) -> Program:
    found = captured(Small(forward, **parts()))
    reduce(found)
    return found.program


def x(m: Any, b: Any) -> torch.Tensor:
    found: torch.Tensor = m.layer(b["x"])
    return found


def read_behind(m: Any, b: Any) -> Any:
    y = m.before(b["x"])
    return {"x": m.layer(y), "y": y}


def read_before(m: Any, b: Any) -> Any:
    y = x(m, b)
    return {"x": m.after(y), "y": y}


NORMS: Mapping[str, tuple[Forward, int, int]] = {
    "behind": (lambda m, b: {"x": m.after(x(m, b))}, 1, 0),
    "behind, with an activation": (lambda m, b: {"x": torch.relu(m.after(x(m, b)))}, 1, 0),
    "before": (lambda m, b: {"x": m.layer(m.before(b["x"]))}, 1, 0),
    "both": (lambda m, b: {"x": m.after(m.layer(m.before(b["x"])))}, 1, 0),
    "no scale": (lambda m, b: {"x": m.untrained(x(m, b))}, 1, 0),
    "no bias": (lambda m, b: {"x": m.after(m.plain(x(m, b)))}, 2, 0),
    "read by others too": (read_behind, 1, 1),
    "before, read by others too": (read_before, 1, 1),
    "given": (lambda m, b: {"x": m.before(b["x"])}, 0, 1),
    "before two of them": (
        lambda m, b: {"x": m.own(m.after(torch.relu(x(m, b)))), "y": m.second(m.after(x(m, b)))},
        4,
        0,
    ),
}


@pytest.mark.parametrize(("forward", "layers", "scaled"), NORMS.values(), ids=NORMS)
def test_a_norm_is_part_of_a_layer(forward: Forward, layers: int, scaled: int) -> None:
    """Or one call that scales and shifts."""
    program = reduced(forward)
    assert calls(program, aten.batch_norm.default) == []
    assert len(calls(program, linear)) == layers
    assert len(calls(program, aten.addcmul.default)) == scaled
    assert_graph(Small(forward, **parts()))


STAYING: Mapping[str, Forward] = {
    "of places, as many as numbers": lambda m, b: {
        "x": m.after(m.wide(b["x"].view(-1, 2, 3)).repeat(1, 2, 1))
    },
    "of places behind a layer": lambda m, b: {
        "x": m.after(m.square(x(m, b).unsqueeze(1).repeat(1, WIDTH, 1)))
    },
    "of two places": lambda m, b: {"x": m.two(m.wide(b["x"].view(-1, 2, 3)))},
}


@pytest.mark.parametrize("forward", STAYING.values(), ids=STAYING)
def test_a_norm_along_another_axis_stays(forward: Forward) -> None:
    assert len(calls(reduced(forward), aten.batch_norm.default)) == 1
    assert_graph(Small(forward, **parts()))


def test_a_norm_of_the_batch_itself_is_never_folded() -> None:
    forward: Forward = lambda m, b: {"x": m.unseen(x(m, b))}  # noqa: E731  as the others are
    assert len(calls(reduced(forward), aten.batch_norm.default)) == 1


ACTIVATIONS: Mapping[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "silu in place": nn.SiLU(inplace=True),
    "leaky": nn.LeakyReLU(),
    "leaky 0.2": nn.LeakyReLU(0.2, inplace=True),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "prelu": nn.PReLU(init=0.3),
}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_is_part_of_its_layer(activation: nn.Module) -> None:
    module = Small(lambda m, b: {"x": m.own(m.act(x(m, b)))}, **parts(), act=activation)
    found = captured(module)
    reduce(found)
    assert [bool(node.meta.get(ACTIVATION)) for node in calls(found.program, linear)] == [
        True,
        False,
    ]
    assert_graph(module)


OTHERS = {
    "elu": nn.ELU(),
    "elu in place": nn.ELU(inplace=True),
    "softplus": nn.Softplus(),
    "relu6": nn.ReLU6(inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "slopes": nn.PReLU(WIDTH, init=0.3),
}


@pytest.mark.parametrize("activation", OTHERS.values(), ids=OTHERS)
def test_another_activation_stays(activation: nn.Module) -> None:
    assert_graph(Small(lambda m, b: {"x": m.own(m.act(x(m, b)))}, **parts(), act=activation))


def test_what_others_read_is_not_activated_for_them() -> None:
    def forward(m: Any, b: Any) -> Any:
        y = m.own(x(m, b))
        return {"x": torch.relu(y), "y": torch.sigmoid(y), "z": y}

    (_, last) = calls(reduced(forward), linear)
    assert last.meta.get(ACTIVATION) is None
    assert_graph(Small(forward, **parts()))


def siblings(m: Any, b: Any) -> Any:
    y = x(m, b)
    return {"x": torch.relu(m.own(y)), "y": torch.relu(m.second(y)), "z": torch.tanh(m.plain(y))}


def test_siblings_are_one_layer() -> None:
    """Those with the same activation."""
    weights = [tuple(node.args[1].meta["val"].shape) for node in calls(reduced(siblings), linear)]
    assert weights == [(WIDTH, DENSE), (2 * WIDTH, WIDTH), (WIDTH, WIDTH)]
    assert_graph(Small(siblings, **parts()))


def tied(m: Any, b: Any) -> Any:
    y = m.own(x(m, b))
    return {"x": m.own(y) + m.own(y * 2), "y": torch.relu(m.own(y))}


def own_weight(m: Any, b: Any) -> Any:
    y = x(m, b)
    return {"x": m.own(y) @ m.own.weight, "y": nn.functional.linear(y, m.own.weight)}


def weight_of_rows(m: Any, b: Any) -> Any:
    """A layer whose weight is no constant."""
    return {"x": nn.functional.linear(x(m, b), m.own.weight * b["x"].new_ones(1))}


SAME: Mapping[str, Forward] = {
    "one layer twice": tied,
    "a weight in two layers": own_weight,
    "computed weight": weight_of_rows,
    "three axes": lambda m, b: {"x": m.own(torch.relu(m.wide(b["x"].view(-1, 2, 3))))},
    "one axis": lambda m, b: {"x": m.own(m.own.weight[0]) + x(m, b)},
    "long chain": lambda m, b: {"x": m.own(m.second(torch.relu(m.own(x(m, b)))))},
}


@pytest.mark.parametrize("forward", SAME.values(), ids=SAME)
def test_numbers_are_the_same(forward: Forward) -> None:
    assert_graph(Small(forward, **parts()))
