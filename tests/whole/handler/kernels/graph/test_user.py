"""What requests share is computed once, and answers are those of rows in full."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.sharing import SHARED, USER, Forward, Pair, batches
from torchrec_handler.kernels.graph import blocks, method, methods
from torchrec_handler.kernels.graph.method import (
    EVERY,
    GraphMethod,
)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are used at all sizes, however fast they are; any number of programs is kept."""
    monkeypatch.setattr(methods, "_time", lambda method: method.ranges.append(EVERY[0]))
    monkeypatch.setattr(method, "MOST_SHARED", 100)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call computed the user's part once."""
    found: list[bool] = []
    shared = GraphMethod.shared

    def watched(method: GraphMethod, what: Any) -> Callable[..., Any] | None:
        compute = shared(method, what)
        found.append(compute is not None)
        return compute

    monkeypatch.setattr(GraphMethod, "shared", watched)
    return found


def together(m: Any, b: Any) -> torch.Tensor:
    """[B, 21]"""
    user, item = m.user(b["user"]).values(), m.item(b["item"]).values()
    return torch.cat([user, item, b["user_dense"], b["item_dense"]], 1)


def of_user(m: Any, b: Any) -> torch.Tensor:
    """[B, 4]"""
    found: torch.Tensor = m.of_dense(b["user_dense"])
    return found


def of_item(m: Any, b: Any) -> torch.Tensor:
    """[B, 4]"""
    found: torch.Tensor = m.of_item(m.item(b["item"]).values())
    return found


def in_place(m: Any, b: Any) -> Any:
    x, y = m.of_user(m.user(b["user"]).values()), of_item(m, b)
    x[:, 0] = 0.0
    y += x
    x = torch.relu_(x)
    y[y > 1] = 0.5
    return {"x": x, "y": y}


def constants(m: Any, b: Any) -> Any:
    rows = b["user_dense"].shape[0]
    weight = m.of_dense.weight
    return {
        "ones": torch.ones(rows),
        "zeros": b["user_dense"].new_zeros(rows, 2) + weight[:1, :2],
        "row": weight[0].expand(rows, 3) + of_user(m, b)[:, :3],
    }


def target_attention(m: Any, b: Any) -> Any:
    history = m.user_lists(b["user"])["u"].to_padded_dense(3)
    query = of_item(m, b).unsqueeze(1).expand(-1, 3, -1)
    pieces = [query, history, query - history, query * history]
    weights = m.attention(torch.cat(pieces, -1)).squeeze(-1)
    known = torch.arange(3)[None] < b["user"]["u"].lengths()[:, None]
    weights = weights.masked_fill(~known, -1e9).softmax(1)
    return {"x": (weights.unsqueeze(-1) * history).sum(1)}


def lists_of_both(m: Any, b: Any) -> Any:
    users = m.user_lists(b["user"])["u"].to_padded_dense(3)
    items = m.item_lists(b["item"])["i"].to_padded_dense(2)
    return {"x": torch.bmm(users, items.transpose(1, 2)).flatten(1)}


def interaction(m: Any, b: Any) -> Any:
    user, item = m.user(b["user"]), m.item(b["item"])
    fields = torch.stack([user["u"], user["v"], item["i"], item["j"]], 1)
    products = torch.bmm(fields, fields.transpose(1, 2))
    rows, columns = torch.triu_indices(4, 4, 1)
    return {"x": products[:, rows, columns], "fields": fields.flatten(1)}


def experts(m: Any, b: Any) -> Any:
    gate = torch.softmax(of_user(m, b), 1)
    found = m.over(together(m, b)).view(-1, 4, 2)
    return {"x": (gate.unsqueeze(-1) * found).sum(1)}


def reshaped(m: Any, b: Any) -> Any:
    rows = b["user_dense"].shape[0]
    user, item = of_user(m, b), of_item(m, b)
    product = user.view(rows, 2, 2) @ item.view(rows, 2, 2)
    wide = user.unsqueeze(1).expand(rows, 3, 4).reshape(rows * 3, 4).view(rows, 3, 4)
    return {"x": product.reshape(rows, 4), "y": (wide * item.unsqueeze(1)).sum(1)}


def chosen(m: Any, b: Any) -> Any:
    user, item = of_user(m, b), of_item(m, b)
    return {
        "where": torch.where(user > 0, item, user),
        "best": user.argmax(1),
        "indices": (item + user).topk(2, 1).indices,
        "column": user[:, :1] * item,
        "squeezed": user[:, :1].squeeze(1) - item[:, 0],
    }


def scored(m: Any, b: Any) -> Any:
    found = m.scored(b["scored"]).values()
    return {"x": m.eight(found), "y": found[:, :4] * of_item(m, b)}


def vectors(m: Any, b: Any) -> Any:
    assert m is not None
    both = torch.stack(b["vectors"], 1).sum(1)
    return {
        "x": (both * b["user_dense"]).sum(1),
        "y": torch.cat([*b["vectors"], b["item_dense"]], 1),
    }


def tower(m: Any, b: Any) -> Any:
    user, item = m.of_user(m.user(b["user"]).values()), of_item(m, b)
    return {"x": (user * item).sum(1), "user": user, "dropped": m.drop(user)}


MODELS: Mapping[str, Forward] = {
    "layers": lambda m, b: {"x": m.top(torch.relu(m.over(together(m, b)))).squeeze(1)},
    "norms": lambda m, b: {"x": m.layer_norm(torch.relu(m.over(m.norm(together(m, b)))))},
    "two towers": tower,
    "nothing in common": lambda m, b: {"x": of_user(m, b), "y": of_item(m, b)},
    "target attention": target_attention,
    "lists of both": lists_of_both,
    "interaction": interaction,
    "experts": experts,
    "reshaped": reshaped,
    "chosen": chosen,
    "scored": scored,
    "vectors": vectors,
    "in place": in_place,
    "constants": constants,
    "inputs": lambda _, b: {"x": b["user_dense"], "y": b["user_dense"], "z": b["item_dense"]},
    "item alone": lambda m, b: {"x": of_item(m, b)},
    "user alone": lambda m, b: {"x": m.of_user(m.user(b["user"]).values())},
}


@pytest.mark.parametrize("forward", MODELS.values(), ids=MODELS)
def test_answers_are_those_of_rows_in_full(forward: Forward, computed: list[bool]) -> None:
    """Of several requests at once, of which some share nothing."""
    pair = Pair(forward)
    for shared in SHARED[:5]:
        computed.clear()
        for batch in batches(shared):
            pair.assert_same(batch)
        assert computed
        assert all(computed)


POOLED = ("layers", "two towers", "interaction", "experts", "in place", "vectors", "scored")


@pytest.mark.parametrize("name", POOLED)
def test_inputs_shared_in_part(name: str, computed: list[bool]) -> None:
    pair = Pair(MODELS[name])
    for shared in SHARED[5:]:
        for batch in batches(shared):
            pair.assert_same(batch)
    assert computed
    assert all(computed)


@pytest.mark.parametrize("name", ["layers", "target attention", "in place", "chosen"])
def test_blocks_of_candidates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rows each, so that a block holds rows of several users."""
    monkeypatch.setattr(blocks, "LEAST_ROWS", 3)
    monkeypatch.setattr(blocks, "MOST_ROWS", 3)
    pair = Pair(MODELS[name])
    assert pair.graph._run.block == 3
    for batch in batches(USER):
        pair.assert_same(batch)


def lengths_beside(m: Any, b: Any) -> Any:
    """Reads what of a list only trials with longer lists would show."""
    longer = (b["user"].lengths().view(2, -1) > 3).sum(0)
    return {"x": m.user(b["user"]).values() * (1 + longer.unsqueeze(1))}


def concatenated(m: Any, b: Any) -> Any:
    both = KeyedJaggedTensor.concat([b["user"], b["item"]])
    return {"x": m.all_bags(both).values()}


ACROSS = "computes across users what it does across rows"
NOT_SHARED: Mapping[str, tuple[Forward, frozenset[str], str]] = {
    "mean of users": (
        lambda m, b: {"x": of_item(m, b) - of_user(m, b).mean(0)},
        USER,
        f"mean {ACROSS}",
    ),
    "rarely of users": (
        lambda m, b: {"x": of_item(m, b) + torch.relu(of_user(m, b) - 9).cumsum(0)},
        USER,
        f"cumsum {ACROSS}",
    ),
    "number of rows": (
        lambda m, b: {"x": of_item(m, b) + of_user(m, b) / b["user_dense"].shape[0]},
        USER,
        "is 0.",
    ),
    "list of both": (concatenated, USER, "a collection looks up several inputs, some of them"),
    "lists in part": (
        target_attention,
        frozenset("u"),
        "a collection gives sequences of features of which some are shared",
    ),
    "lengths in part": (
        lengths_beside,
        frozenset("u"),
        "something beside lookups reads an input of which some is shared",
    ),
}


@pytest.mark.parametrize(("forward", "shared", "why"), NOT_SHARED.values(), ids=NOT_SHARED)
def test_what_cannot_be_shared_is_computed_row_by_row(
    forward: Forward,
    shared: frozenset[str],
    why: str,
    computed: list[bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = Pair(forward)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    for batch in batches(shared):
        pair.assert_same(batch)
    assert computed
    assert not any(computed)
    assert caplog.messages
    for message in caplog.messages:
        assert message.partition("row by row: ")[2].startswith(why)


def test_a_mean_of_candidates_is_that_of_all_rows(computed: list[bool]) -> None:
    pair = Pair(lambda m, b: {"x": of_item(m, b) - of_item(m, b).mean(0) + of_user(m, b)})
    (given, full) = batches(USER)[0][0]
    pair.assert_same([(given, full)])
    assert computed == [True]


def test_lookups_find_no_ids(computed: list[bool]) -> None:
    """Of a user who has none, and of candidates who have none, or one."""
    pair = Pair(tower)
    user = {"user.lengths": [0, 0], "user_dense": [[0.5, 1, 2]]}
    in_full = {"user.lengths": [0] * 16, "user_dense": [[0.5, 1, 2]] * 8}
    for ids in ([], [3], [3, 4]):
        rest = {
            "batch_size": 8,
            "user.values": [],
            "item.lengths": [1] * len(ids) + [0] * (16 - len(ids)),
            "item.values": ids,
            "item_dense": [[0, 1]] * 8,
            "scored.lengths": [0] * 16,
            "scored.values": [],
            "scored.weights": [],
            "vectors": [[[0, 1, 2]] * 8] * 2,
        }
        given, full = (json.dumps({**rest, **own}).encode() for own in (user, in_full))
        pair.assert_same([(given, full)])
    assert computed
