"""What does nothing is taken out, what is known is computed, and no number changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.graphs import (
    WIDTH,
    Forward,
    Small,
    assert_graph,
    bags,
    calls,
    captured,
    keyed,
    layer,
)
from torchrec_handler.kernels.graph.clean import clean
from torchrec_handler.kernels.graph.program import Program, aten

Case = tuple[Forward, Sequence[str]]


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "layer": layer(),
        "bags": bags(),
        "dropout": nn.Dropout(),
        "buffer": torch.randn(WIDTH),
        "square": torch.randn(WIDTH, WIDTH),
        "one": torch.randn(1),
        "vector": torch.randn(WIDTH),
    }


def cleaned(forward: Forward) -> Program:
    program = captured(Small(forward, **parts())).program
    clean(program)
    return program


def names(program: Program) -> list[str]:
    """Of calls, in order: `linear`, `cat`."""
    return [getattr(node.target, "__name__", "").partition(".")[0] for node in calls_of(program)]


def calls_of(program: Program) -> list[Any]:
    return [node for node in program.nodes if node.op == "call_function"]


def x(m: Any, b: Any) -> torch.Tensor:
    found: torch.Tensor = m.layer(b["x"])
    return found


def both(m: Any, b: Any) -> torch.Tensor:
    """[B, 2 * WIDTH]"""
    return torch.cat([x(m, b), x(m, b) * 2], 1)


def pieces(m: Any, b: Any) -> Any:
    first, second = torch.split(both(m, b), WIDTH, 1)
    return {"x": first * second}


def uneven(m: Any, b: Any) -> Any:
    first, second = torch.split(both(m, b), 5, 1)
    return {"x": torch.cat([second, first], 1)}


def chunks(m: Any, b: Any) -> Any:
    first, second = both(m, b).chunk(2, 1)
    return {"x": torch.stack([first, second], 1)}


def slices(m: Any, b: Any) -> Any:
    y = both(m, b)
    ends = (y[:, -4:], y[:, :-4], y[:, 1:-1], y[:, 2:100], y[:, -100:3], y[:, 3:3], y[:, ::2])
    return {str(at): part for at, part in enumerate(ends)}


CLEANED: Mapping[str, Case] = {
    "nothing to do": (lambda m, b: {"x": x(m, b)}, ["linear"]),
    "dropout": (lambda m, b: {"x": m.dropout(x(m, b))}, ["linear"]),
    "same type": (lambda m, b: {"x": x(m, b).float().to(torch.float32)}, ["linear"]),
    "other type": (lambda m, b: {"x": x(m, b).double()}, ["linear", "to"]),
    "same shape": (lambda m, b: {"x": x(m, b).view(-1, WIDTH).expand(-1, WIDTH)}, ["linear"]),
    "detached": (lambda m, b: {"x": x(m, b).detach()}, ["linear"]),
    "cat of one": (lambda m, b: {"x": torch.cat([x(m, b)], 1)}, ["linear"]),
    "cat of cats": (
        lambda m, b: {"x": torch.cat([torch.cat([x(m, b), b["x"]], 1), b["x"]], -1)},
        ["linear", "cat"],
    ),
    "cat of cats along another axis": (
        lambda _, b: {"x": torch.cat([torch.stack([b["x"]]), torch.stack([b["x"]])], 1)},
        ["stack", "stack", "cat"],
    ),
    "a piece of a cat": (
        lambda m, b: {"x": torch.cat([x(m, b), b["x"]], 1)[:, WIDTH:]},
        [],
    ),
    "within a piece": (
        lambda m, b: {"x": torch.cat([b["x"], x(m, b)], 1)[:, 1:3]},
        ["slice"],
    ),
    "dead": (lambda m, b: {"x": b["x"], "y": [x(m, b), b["x"]][1]}, []),
    "constants": (
        lambda m, b: {"x": x(m, b) + torch.ones(WIDTH).mul(2) * m.buffer},
        ["linear", "add"],
    ),
    "a bias": (lambda m, b: {"x": x(m, b) @ m.square + m.buffer}, ["linear", "linear"]),
    "no bias": (lambda m, b: {"x": x(m, b) @ m.square + m.one}, ["linear", "linear", "add"]),
    "addmm": (lambda m, b: {"x": torch.addmm(m.buffer, x(m, b), m.square)}, ["linear", "linear"]),
    "scaled addmm": (
        lambda m, b: {"x": torch.addmm(m.buffer, x(m, b), m.square, beta=0.5, alpha=2)},
        ["linear", "addmm"],
    ),
    "a vector": (lambda m, b: {"x": x(m, b) @ m.vector}, ["linear", "matmul"]),
}


@pytest.mark.parametrize(("forward", "expected"), CLEANED.values(), ids=CLEANED)
def test_what_is_left(forward: Forward, expected: Sequence[str]) -> None:
    assert names(cleaned(forward)) == expected
    assert_graph(Small(forward, **parts()))


EXACT: Mapping[str, Forward] = {
    "pieces": pieces,
    "uneven pieces": uneven,
    "chunks": chunks,
    "slices": slices,
    "by feature": lambda m, b: {"x": m.bags(keyed(b))["v"], "y": m.bags(keyed(b))["u"]},
    "narrow": lambda m, b: {"x": both(m, b).narrow(1, 2, 4)},
    "einsum": lambda m, b: {"x": torch.einsum("bi,bj,ij->b", x(m, b), x(m, b), m.square)},
    "with an alpha": lambda m, b: {"x": torch.add(x(m, b) @ m.square, m.buffer, alpha=2)},
    "added to its reader": lambda m, b: {"x": x(m, b) @ m.square + x(m, b)},
    "ints": lambda _, b: {"x": (b["s.lengths"].view(2, -1).sum(0) + 1) // 2},
}


@pytest.mark.parametrize("forward", EXACT.values(), ids=EXACT)
def test_numbers_are_the_same(forward: Forward) -> None:
    assert_graph(Small(forward, **parts()))


def test_pieces_of_a_cat_are_not_put_together_to_be_cut() -> None:
    assert calls(cleaned(pieces), aten.cat.default) == []


def test_a_constant_is_not_the_modules_own() -> None:
    """What a graph computes at once is a copy: a buffer that is changed later changes nothing."""
    program = cleaned(lambda m, b: {"x": x(m, b) + m.buffer.view(1, -1)})
    buffers = [node.meta["constant"] for node in program.nodes if node.op == "get_attr"]
    module = Small(lambda *_: {}, **parts())
    assert all(tensor.data_ptr() != module.get_buffer("buffer").data_ptr() for tensor in buffers)
