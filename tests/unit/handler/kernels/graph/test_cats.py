"""A layer over a cat whose pieces repeat or recur is a sum of smaller ones."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.graphs import (
    WIDTH,
    Forward,
    Small,
    assert_graph,
    calls,
    captured,
    keyed,
    layer,
    sequences,
)
from torchrec_handler.kernels.graph.layers import linear
from torchrec_handler.kernels.graph.methods import reduce

PLACES = 3


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "layer": layer(),
        "own": layer(WIDTH),
        "sequences": sequences(),
        "constant": torch.randn(WIDTH),
        **{f"over_{width}": nn.Linear(width, 3) for width in (5, 8, 9, 16)},
    }


def widths(forward: Forward) -> list[int]:
    """Inputs of each layer that is left."""
    found = captured(Small(forward, **parts()))
    reduce(found)
    return [node.args[1].meta["val"].shape[1] for node in calls(found.program, linear)]


def query(m: Any, b: Any) -> torch.Tensor:
    """[B, PLACES, WIDTH], the same in each place."""
    found: torch.Tensor = m.layer(b["x"]).unsqueeze(1).expand(-1, PLACES, -1)
    return found


def history(m: Any, b: Any) -> torch.Tensor:
    found: torch.Tensor = m.sequences(keyed(b))["u"].to_padded_dense(PLACES)
    return found


def attention(m: Any, b: Any) -> Any:
    q, k = query(m, b), history(m, b)
    return {"x": torch.relu(m.over_16(torch.cat([q, k, q - k, q * k], -1)))}


def recurring(m: Any, b: Any) -> Any:
    q = m.layer(b["x"])
    k = m.own(q)
    return {"x": m.over_16(torch.cat([q, k, q - k, k + q], -1))}


def of_a_constant(m: Any, b: Any) -> Any:
    rows = b["x"].shape[0]
    return {"x": m.over_8(torch.cat([m.layer(b["x"]), m.constant.expand(rows, WIDTH)], 1))}


def with_an_alpha(m: Any, b: Any) -> Any:
    q = m.layer(b["x"])
    k = m.own(q)
    parts_ = [q, k, torch.sub(q, k, alpha=2), torch.add(q, k, alpha=3)]
    return {"x": m.over_16(torch.cat(parts_, -1))}


def of_one_column(m: Any, b: Any) -> Any:
    q = m.layer(b["x"])
    return {"x": m.over_9(torch.cat([q, q[:, :1], q - q[:, :1]], -1))}


def repeated_columns(m: Any, b: Any) -> Any:
    q = m.layer(b["x"])
    k = q[:, :1].expand(-1, WIDTH)
    return {"x": m.over_16(torch.cat([q, k, q - k, q], -1))}


def repeated_rows(m: Any, b: Any) -> Any:
    """A row that all have is no piece that repeats in places."""
    first = m.own.weight[:1].expand(b["x"].shape[0], WIDTH)
    q = m.layer(b["x"])
    return {"x": m.over_16(torch.cat([q, first, q - first, q], -1))}


def other_axis(m: Any, b: Any) -> Any:
    q = query(m, b)
    return {"x": m.own(torch.cat([q, q], 1))}


def different(m: Any, b: Any) -> Any:
    q = m.layer(b["x"])
    return {"x": m.over_8(torch.cat([q, 1 - q], -1)), "y": m.over_5(torch.cat([q, q[:, :1]], 1))}


SPLIT: Mapping[str, tuple[Forward, list[int]]] = {
    "attention": (attention, [6, 8, 4]),
    "recurring": (recurring, [6, 4, 8]),
    "the same twice": (
        lambda m, b: {"x": m.over_8(torch.cat([m.layer(b["x"])] * 2, 1))},
        [6, 4],
    ),
}


@pytest.mark.parametrize(("forward", "expected"), SPLIT.values(), ids=SPLIT)
def test_pieces_that_recur_are_read_once(forward: Forward, expected: list[int]) -> None:
    assert widths(forward) == expected
    assert_graph(Small(forward, **parts()))


SAME = [
    of_a_constant,
    with_an_alpha,
    of_one_column,
    repeated_columns,
    repeated_rows,
    other_axis,
    different,
]


@pytest.mark.parametrize("forward", SAME)
def test_numbers_are_the_same(forward: Forward) -> None:
    assert_graph(Small(forward, **parts()))
