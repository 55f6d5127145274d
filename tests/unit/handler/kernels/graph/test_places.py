"""Where one place of a sequence is read, only that place is computed, and no number changes."""

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
    made = {
        "sequences": sequences(),
        "first": layer(WIDTH),
        "second": layer(WIDTH),
        "norm": nn.LayerNorm(WIDTH),
        "query": layer(WIDTH),
        "key": layer(WIDTH),
        "encoder": nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, norm_first=True),
        "buffer": torch.randn(PLACES, WIDTH),
    }
    nn.init.normal_(made["norm"].bias)
    return made


def places(forward: Forward) -> list[int]:
    """How many places a row each layer that is left computes."""
    found = captured(Small(forward, **parts()))
    reduce(found)
    sizes = [node.meta["val"].shape for node in calls(found.program, linear)]
    return [PLACES if PLACES in size[:-1] else 1 for size in sizes]


def history(m: Any, b: Any) -> torch.Tensor:
    """[B, PLACES, WIDTH]"""
    found: torch.Tensor = m.sequences(keyed(b))["u"].to_padded_dense(PLACES)
    return found


def last(m: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
    """[B, ...], each row's own place."""
    lengths = m.sequences(keyed(b))["u"].lengths().clamp(1, PLACES)
    return x[torch.arange(len(lengths)), lengths - 1]


def block(m: Any, x: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = x + torch.tanh(m.second(torch.relu(m.first(m.norm(x)))))
    return added


def attended(m: Any, b: Any) -> torch.Tensor:
    """Attention as it is written by hand."""
    x = history(m, b)
    scores = m.query(x) @ m.key(x).transpose(1, 2) + torch.ones(PLACES, PLACES).triu(1) * -9
    return block(m, torch.softmax(scores, -1) @ x)


def encoded(m: Any, b: Any) -> torch.Tensor:
    mask = torch.ones(PLACES, PLACES, dtype=torch.bool).triu(1)
    found: torch.Tensor = m.encoder(history(m, b), src_mask=mask)
    return found


def flattened(m: Any, b: Any) -> torch.Tensor:
    x = history(m, b)
    return torch.tanh(m.first(x.view(-1, WIDTH)).view(-1, PLACES, WIDTH))


def turned(m: Any, b: Any) -> torch.Tensor:
    x = history(m, b).permute(2, 1, 0).permute(2, 0, 1)
    found: torch.Tensor = m.first(torch.cat([x, x], 2).transpose(1, 2)[..., :WIDTH])
    return found


READ: Mapping[str, tuple[Forward, list[int]]] = {
    "the last place": (lambda m, b: {"x": block(m, history(m, b))[:, -1]}, [1, 1]),
    "the first place": (lambda m, b: {"x": (block(m, history(m, b)) + m.buffer)[:, 0]}, [1, 1]),
    "each row's own": (lambda m, b: {"x": last(m, b, block(m, history(m, b)))}, [1, 1]),
    "a query": (lambda m, b: {"x": last(m, b, attended(m, b))}, [PLACES, 1, 1]),
    "a query of the last": (lambda m, b: {"x": attended(m, b)[:, -1]}, [PLACES, 1, 1, 1]),
    "a transformer's": (lambda m, b: {"x": last(m, b, encoded(m, b))}, [PLACES, 1, 1, 1]),
    "rows and places in one": (lambda m, b: {"x": flattened(m, b)[:, -1]}, [1]),
    "other axes": (lambda m, b: {"x": turned(m, b)[:, -1]}, [1]),
}


@pytest.mark.parametrize(("forward", "expected"), READ.values(), ids=READ)
def test_what_is_computed(forward: Forward, expected: list[int]) -> None:
    assert sorted(places(forward)) == sorted(expected)
    assert_graph(Small(forward, **parts()))


def twice(m: Any, b: Any) -> Any:
    x = block(m, history(m, b))
    return {"x": x[:, 0] + x.sum(1)}


def along_places(m: Any, b: Any) -> Any:
    return {"x": torch.softmax(m.first(history(m, b)), 1)[:, 1].cumsum(1)}


def of_itself(m: Any, b: Any) -> Any:
    x = m.first(history(m, b))
    return {"x": torch.matmul(x.transpose(1, 2), x)[:, 0], "y": torch.bmm(x, x.mT)[:, 1]}


def the_first_row(m: Any, b: Any) -> Any:
    return {"x": m.first(history(m, b))[0]}


def across(m: Any, b: Any) -> Any:
    """A place of a view that is no place of what was viewed."""
    return {"x": m.first(history(m, b)).reshape(-1, WIDTH, PLACES)[:, 1]}


SAME = [twice, along_places, of_itself, the_first_row, across]


@pytest.mark.parametrize("forward", SAME)
def test_all_places_are_computed(forward: Forward) -> None:
    assert PLACES in places(forward)
    assert_graph(Small(forward, **parts()))
