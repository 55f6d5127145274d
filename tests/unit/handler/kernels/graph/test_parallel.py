"""What is done alike to parts of one tensor is done once, and no number changes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.graphs import Forward, Small, assert_graph, calls, captured, layer
from torchrec_handler.kernels.graph.layers import linear
from torchrec_handler.kernels.graph.methods import reduce
from torchrec_handler.kernels.graph.packing import side_by_side
from torchrec_handler.kernels.graph.program import aten

EXPERTS, TASKS, WIDE = 3, 2, 5


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "experts": nn.ModuleList(
            nn.Sequential(layer(outputs=WIDE), nn.ReLU(), layer(WIDE, 4), nn.ReLU())
            for _ in range(EXPERTS)
        ),
        "gates": nn.ModuleList(layer(outputs=EXPERTS) for _ in range(TASKS)),
        "towers": nn.ModuleList(
            nn.Sequential(layer(4, 3), nn.GELU(), nn.Linear(3, 1)) for _ in range(TASKS)
        ),
        "narrow": layer(WIDE, 2),
    }


def joined(forward: Forward) -> list[int]:
    """How many calls there are of layers side by side, of other layers, softmax and sums."""
    found = captured(Small(forward, **parts()))
    reduce(found)
    kinds = side_by_side, linear, aten.softmax.int, aten.bmm.default
    return [len(calls(found.program, kind)) for kind in kinds]


def views(m: Any, b: Any) -> list[torch.Tensor]:
    """[B, 4] of each expert."""
    return [expert(b["x"]) for expert in m.experts]


def mixture(m: Any, b: Any, equation: str, dim: int) -> Any:
    stacked = torch.stack(views(m, b), dim)
    gates = [torch.softmax(gate(b["x"]), -1) for gate in m.gates]
    mixed = [torch.einsum(equation, gate, stacked) for gate in gates]
    return {str(at): tower(mixed[at]) for at, tower in enumerate(m.towers)}


def summed(m: Any, b: Any) -> Any:
    stacked = torch.stack(views(m, b), 1)
    mixed = [(torch.softmax(gate(b["x"]), 1).unsqueeze(2) * stacked).sum(1) for gate in m.gates]
    return {str(at): tower(mixed[at]).squeeze(-1) for at, tower in enumerate(m.towers)}


JOINED: Mapping[str, tuple[Forward, list[int]]] = {
    "mixture of experts": (lambda m, b: mixture(m, b, "be,beh->bh", 1), [3, 2, 1, 1]),
    "sums": (summed, [3, 2, 1, 1]),
    "stacked last": (lambda m, b: mixture(m, b, "be, bhe -> bh", 2), [1, 6, 1, 0]),
    "stacked first": (lambda m, b: mixture(m, b, "be,ebh->bh", 0), [1, 6, 1, 0]),
    "experts": (lambda m, b: {"x": torch.cat(views(m, b), 1)}, [1, 1, 0, 0]),
}


@pytest.mark.parametrize(("forward", "expected"), JOINED.values(), ids=JOINED)
def test_what_is_alike_is_done_once(forward: Forward, expected: list[int]) -> None:
    assert joined(forward) == expected
    assert_graph(Small(forward, **parts()))


def unlike(m: Any, b: Any) -> Any:
    """Widths, activations and axes that differ."""
    hidden = [expert[1](expert[0](b["x"])) for expert in m.experts]
    own = [m.experts[0][2](hidden[0]), torch.tanh(m.experts[1][2](hidden[1])), m.narrow(hidden[2])]
    return {"x": torch.cat(own, 1)}


def some(m: Any, b: Any) -> Any:
    """Not all parts."""
    hidden = [expert[1](expert[0](b["x"])) for expert in m.experts]
    return {"x": m.experts[0][2](hidden[0]) + m.experts[1][2](hidden[1]) + hidden[2][:, :4]}


def one_gate(m: Any, b: Any) -> Any:
    gate = torch.softmax(m.gates[0](b["x"]), 0)
    return {"x": (gate.unsqueeze(-1) * torch.stack(views(m, b), 1)).sum(1)}


@pytest.mark.parametrize("forward", [unlike, some, one_gate])
def test_numbers_are_the_same(forward: Forward) -> None:
    assert_graph(Small(forward, **parts()))
