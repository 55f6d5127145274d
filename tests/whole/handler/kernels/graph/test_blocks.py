"""Rows are computed in blocks only where none reaches another, whatever their numbers are."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.graphs import (
    WIDTH,
    Forward,
    Small,
    as_graph,
    assert_graph,
    assert_same,
    bags,
    draw,
    keyed,
    layer,
    sequences,
)
from torchrec_handler.kernels.graph.blocks import ALL_ROWS


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "layer": layer(),
        "own": layer(WIDTH),
        "bags": bags(),
        "sequences": sequences(),
        "attention": nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        "norm": nn.LayerNorm(WIDTH),
    }


def x(m: Any, b: Any) -> torch.Tensor:
    found: torch.Tensor = m.layer(b["x"])
    return found


def attention(m: Any, b: Any) -> Any:
    y = m.sequences(keyed(b))["u"].to_padded_dense(3)
    return {"x": m.attention(y, y, y, need_weights=False)[0]}


def places(m: Any, b: Any) -> Any:
    """A place of each row is a row of its own for a while."""
    y = x(m, b).unsqueeze(1).expand(-1, 3, -1).reshape(-1, WIDTH)
    return {"x": m.own(y).view(-1, 3, WIDTH).softmax(1).sum(1)}


def transposed(m: Any, b: Any) -> Any:
    y = x(m, b).view(-1, 2, 2).transpose(0, 1).softmax(0).transpose(0, 1)
    return {"x": y.flatten(1)}


def twice_the_rows(m: Any, b: Any) -> Any:
    y = m.own(torch.cat([x(m, b), x(m, b) * 2], 0))
    rows = b["x"].shape[0]
    return {"x": y[:rows] + y[rows:]}


def filled(m: Any, b: Any) -> Any:
    rows = b["x"].shape[0]
    return {"x": torch.cat([x(m, b), torch.ones(rows, 1), b["x"].new_zeros(rows, 2)], 1)}


IN_BLOCKS: Mapping[str, Forward] = {
    "layers": lambda m, b: {"x": m.own(torch.relu(x(m, b)))},
    "lookups": lambda m, b: {"x": m.norm(m.bags(keyed(b)).values().view(-1, 2, WIDTH).sum(1))},
    "attention": attention,
    "places": places,
    "transposed": transposed,
    "twice the rows": twice_the_rows,
    "filled": filled,
    "softmax": lambda m, b: {"x": x(m, b).softmax(1), "y": x(m, b).log_softmax(-1)},
    "normalized": lambda m, b: {"x": nn.functional.normalize(x(m, b))},
    "sorted": lambda m, b: {"x": x(m, b).sort(1).values, "y": x(m, b).topk(2).indices},
    "masked": lambda m, b: {"x": (x(m, b), x(m, b) > 0)},
    "an input": lambda m, b: {"x": x(m, b), "y": b["x"]},
}


@pytest.mark.parametrize("forward", IN_BLOCKS.values(), ids=IN_BLOCKS)
def test_rows_of_their_own_are_computed_in_blocks(forward: Forward) -> None:
    method = assert_graph(Small(forward, **parts()))
    assert 0 < method._run.block <= 1024


WHOLE: Mapping[str, Forward] = {
    "softmax of rows": lambda m, b: {"x": x(m, b).softmax(0)},
    "mean": lambda m, b: {"x": x(m, b) - x(m, b).mean(0)},
    "mean, kept": lambda m, b: {"x": x(m, b) - x(m, b).mean(0, keepdim=True)},
    "mean of columns": lambda m, b: {"x": x(m, b) - x(m, b).t().mean(1)},
    "largest": lambda m, b: {"x": x(m, b) / x(m, b).abs().max()},
    "rarely large": lambda m, b: {"x": x(m, b) + torch.relu(x(m, b) - 9).max()},
    "rarely large before": lambda m, b: {"x": x(m, b) + torch.relu(x(m, b) - 9).cumsum(0)},
    "rarely large in a column": lambda m, b: {"x": x(m, b) + torch.relu(x(m, b) - 9).amax(0)},
    "in order": lambda m, b: {"x": x(m, b).sort(0).values},
    "turned": lambda m, b: {"x": x(m, b).flip(0), "y": x(m, b).roll(1, 0)},
    "first": lambda m, b: {"x": x(m, b) + x(m, b)[:1], "y": x(m, b) - x(m, b)[0]},
    "last": lambda m, b: {"x": x(m, b) + x(m, b)[-1]},
    "of each other": lambda m, b: {"x": (x(m, b) @ x(m, b).t()).softmax(1) @ x(m, b)},
    "chosen": lambda m, b: {"x": x(m, b)[x(m, b)[:, 0].argsort()]},
    "gathered": lambda m, b: {"x": x(m, b).gather(0, x(m, b).argsort(0))},
    "best": lambda m, b: {"x": x(m, b)[:, 0].topk(1).values.expand(b["x"].shape[0])},
    "scalar": lambda m, b: {"x": x(m, b) * x(m, b).abs().max().item()},
    "no rows": lambda m, b: {"x": x(m, b), "y": x(m, b).sum(0)},
    "flat": lambda m, b: {"x": x(m, b).view(-1)},
    "an id's": lambda m, b: {"x": x(m, b), "y": b["s.values"] + 1},
    "any id": lambda m, b: {"x": torch.where((b["s.values"] > 10).any(), x(m, b), x(m, b) * 2)},
}


@pytest.mark.parametrize("forward", WHOLE.values(), ids=WHOLE)
def test_rows_that_reach_each_other_are_computed_at_once(forward: Forward) -> None:
    method = assert_graph(Small(forward, **parts()))
    assert method._run.block == 0


BY_TRIAL: Mapping[str, Forward] = {
    "numbered": lambda m, b: {"x": x(m, b) + torch.arange(len(b["x"])).unsqueeze(1)},
    "shared out": lambda m, b: {"x": x(m, b) / b["x"].shape[0]},
}


@pytest.mark.parametrize("forward", BY_TRIAL.values(), ids=BY_TRIAL)
def test_what_is_off_in_blocks_is_computed_at_once(forward: Forward) -> None:
    method = assert_graph(Small(forward, **parts()))
    assert method._run.block == ALL_ROWS


def test_a_block_of_any_size_gives_the_same() -> None:
    module = Small(attention, **parts())
    method = as_graph(module)
    assert not isinstance(method, str)
    for block in (1, 2, 299, 300, 301):
        method._run.block = block
        with torch.inference_mode():
            expected = module(draw(300))["x"]
            torch.testing.assert_close(method(draw(300))["x"], expected)
    assert_same(method, module)
