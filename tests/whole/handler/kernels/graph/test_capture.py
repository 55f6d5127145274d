"""What a graph holds is what the method does, whatever its numbers are; else it says why not."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.graphs import (
    FEATURES,
    IDS,
    WIDTH,
    Batch,
    Forward,
    Small,
    as_graph,
    assert_graph,
    bags,
    calls,
    captured,
    draw,
    keyed,
    layer,
    sequences,
)
from torchrec_handler.kernels.graph.program import aten

Outputs = dict[str, Any]


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "layer": layer(),
        "own": layer(WIDTH),
        "bags": bags(),
        "turned": bags("v", "u"),
        "four": bags("u", "v", "w", "x"),
        "sequences": sequences(),
        "relu": nn.ReLU(inplace=True),
        "dropout": nn.Dropout(),
        "attention": nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        "gru": nn.GRU(WIDTH, WIDTH, batch_first=True),
        "buffer": torch.randn(WIDTH),
        "square": torch.randn(WIDTH, WIDTH),
        "rows": torch.randn(IDS, 3),
        "other_ids": torch.randperm(IDS).int(),
    }


def relu_in_place(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    return {"before": x, "y": m.relu(x)}


def relu_of_a_view(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    part = x[:, :2]
    m.relu(x)
    return {"part": part}


def relu_of_a_part(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    m.relu(x[:, :2])
    return {"x": x}


def rarely_put(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    x[x > 8] = 0.0
    return {"x": x}


def rarely_filled(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    x.view(-1).masked_fill_(x.view(-1) > 8, 0.0)
    return {"x": x}


def rarely_clamped(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    x[:, :2].clamp_(max=9)
    return {"x": x, "part": x[:, :3]}


def column_set(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    x[:, 0] = 1.0
    return {"x": x}


def added_in_place(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    y = m.own(x)
    x += y
    return {"x": x, "y": y}


def scattered(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    x.scatter_(1, x.argmax(1, keepdim=True), 0.0)
    return {"x": x}


def lookup_changed(m: Any, b: Batch) -> Outputs:
    pooled = m.bags(keyed(b))
    pooled.values().view(-1, 2, WIDTH)[:, 0].mul_(2)
    return {"all": pooled.values(), "v": pooled["v"], "u": pooled["u"]}


def constant_changed(m: Any, b: Batch) -> Outputs:
    zero = torch.zeros(WIDTH)
    zero[0] = 2
    zero.add_(m.buffer)
    return {"x": m.layer(b["x"]) + zero}


def constant_changed_rarely(m: Any, b: Batch) -> Outputs:
    zero = torch.zeros(WIDTH)
    zero += torch.relu(b["x"][:, :WIDTH] - 9).sum(0)
    return {"x": m.layer(b["x"]) + zero}


def rows_accumulated(m: Any, b: Batch) -> Outputs:
    total = torch.zeros(b["x"].shape[0], WIDTH)
    total[:, :2] += m.layer(b["x"])[:, :2]
    return {"x": total}


def input_copied_and_changed(m: Any, b: Batch) -> Outputs:
    x = b["x"].clone()
    x.clamp_(max=3)
    return {"x": m.layer(x), "given": b["x"]}


IN_PLACE = [
    relu_in_place,
    relu_of_a_view,
    relu_of_a_part,
    rarely_put,
    rarely_filled,
    rarely_clamped,
    column_set,
    added_in_place,
    scattered,
    lookup_changed,
    constant_changed,
    constant_changed_rarely,
    rows_accumulated,
    input_copied_and_changed,
]


@pytest.mark.parametrize("forward", IN_PLACE)
def test_what_is_written_in_place_is_read_by_all_who_see_it(forward: Forward) -> None:
    module = Small(forward, **parts())
    assert_graph(module)
    program = captured(module).program
    assert [node for node in calls(program) if node.target._schema.is_mutable] == []


def test_an_activation_in_place_is_one_beside() -> None:
    program = captured(Small(relu_in_place, **parts())).program
    assert len(calls(program, aten.relu.default)) == 1


def padded(m: Any, b: Batch) -> torch.Tensor:
    found: torch.Tensor = m.sequences(keyed(b))["u"].to_padded_dense(3)
    return found


def attended(m: Any, b: Batch) -> Outputs:
    x = padded(m, b)
    lengths = keyed(b)["u"].lengths().clamp(min=1)
    mask = torch.arange(3)[None] >= lengths[:, None]
    return {"x": m.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]}


def by_id(m: Any, b: Batch) -> Outputs:
    found = m.sequences(keyed(b))
    return {"u": found["u"].values(), "v": m.own(found["v"].values()), "x": m.layer(b["x"])}


def kjt_split(m: Any, b: Batch) -> Outputs:
    first, second = keyed(b).split([1, 1])
    both = KeyedJaggedTensor.concat([first, second])
    return {"x": m.bags(both).values()}


def kjt_concat(m: Any, b: Batch) -> Outputs:
    both = KeyedJaggedTensor.concat([keyed(b), keyed(b, ["w", "x"])])
    return {"x": m.four(both).values()}


def own_ids(m: Any, b: Batch) -> Outputs:
    ids = m.other_ids[b["s.values"].long()]
    return {"x": m.bags(KeyedJaggedTensor(list(FEATURES), ids, lengths=b["s.lengths"])).values()}


def two_results(m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    return {"z": (x, x > 0), "a": [x.argmax(1), x.topk(2, 1).indices]}


FOLLOWED: Mapping[str, Forward] = {
    "dropout": lambda m, b: {"x": m.dropout(m.layer(b["x"]))},
    "keys in no order": lambda m, b: {name: m.layer(b["x"]) * len(name) for name in ("zz", "a")},
    "constant": lambda m, b: {"x": m.layer(b["x"]), "one": torch.ones(b["x"].shape[0])},
    "constant of no rows": lambda m, b: {"x": m.layer(b["x"]), "three": torch.ones(3)},
    "nothing but a constant": lambda *_: {"three": torch.ones(3)},
    "buffer given": lambda m, b: {"x": m.layer(b["x"]), "buffer": m.buffer * 2},
    "twice": lambda m, b: dict.fromkeys(["x", "y"], m.layer(b["x"])),
    "an input": lambda m, b: {"y": m.layer(b["x"]), "x": b["x"], "ids": b["s.values"]},
    "several results": two_results,
    "outputs by id": by_id,
    "unique ids": lambda m, b: {"x": m.layer(b["x"]), "ids": torch.unique(b["s.values"])},
    "rows by a condition": lambda m, b: {"x": b["x"][b["x"][:, 0] > 0], "y": m.layer(b["x"])},
    "lookup of its own": lambda m, b: {"x": m.rows[b["s.values"]]},
    "permuted": lambda m, b: {"x": m.turned(keyed(b).permute([1, 0])).values()},
    "split and put together": kjt_split,
    "concatenated": kjt_concat,
    "ids of its own": own_ids,
    "attention": attended,
    "gru": lambda m, b: {"x": m.gru(padded(m, b))[0][:, -1]},
    "no lookups": lambda m, b: {"x": m.layer(b["x"])},
    "double": lambda m, b: {"x": m.layer(b["x"]).double() @ m.square.double()},
    "rows of another": lambda m, b: {"x": m.layer(b["x"]).reshape(-1, 2).sum(1)},
    "row indices": lambda m, b: {"x": m.layer(b["x"])[torch.arange(len(b["x"])), 0]},
}


@pytest.mark.parametrize("forward", FOLLOWED.values(), ids=FOLLOWED)
def test_what_models_do_is_followed(forward: Forward) -> None:
    assert_graph(Small(forward, **parts()))


def when(condition: Any, m: Any, b: Batch) -> Outputs:
    x = m.layer(b["x"])
    return {"x": x * 2 if condition(b) else x}


def checks_ids(m: Any, b: Batch) -> Outputs:
    if b["s.values"].numel() < 2:
        message = "no ids"
        raise LookupError(message)
    return {"x": m.layer(b["x"])}


def checks_numbers(m: Any, b: Batch) -> Outputs:
    torch._assert_async((b["x"] < 9).all())
    return {"x": m.layer(b["x"])}


def index_of_its_own(m: Any, b: Batch) -> Outputs:
    return {"x": m.layer(b["x"]), "y": m.rows[:10][b["s.values"]]}


FEW_IDS: Mapping[str, Forward] = {
    "no ids": lambda m, b: when(lambda b: b["s.values"].numel() == 0, m, b),
    "one id": lambda m, b: when(lambda b: b["s.values"].shape[0] == 1, m, b),
    "asserted": checks_ids,
    "asserted of numbers": checks_numbers,
    "indexed": index_of_its_own,
}


@pytest.mark.parametrize("forward", FEW_IDS.values(), ids=FEW_IDS)
def test_what_a_trial_never_meets_is_the_modules_own(forward: Forward) -> None:
    """Branches that a few ids take, and errors: both are the model's."""
    assert_graph(Small(forward, **parts()))


def changes_a_buffer(m: Any, b: Batch) -> Outputs:
    m.buffer.add_(1)
    return {"x": m.layer(b["x"]) + m.buffer}


def changes_its_input(m: Any, b: Batch) -> Outputs:
    b["s.values"].add_(1).remainder_(IDS)
    return {"x": m.bags(keyed(b)).values()}


CANNOT = "torch cannot follow it: "
BY_ROWS = "it does something else where not "
DECLINED: Mapping[str, tuple[Forward, str]] = {
    "rows": (lambda m, b: when(lambda b: b["x"].shape[0] > 3, m, b), BY_ROWS + "rows > 3"),
    "many rows": (
        lambda m, b: when(lambda b: b["x"].shape[0] > 900, m, b),
        BY_ROWS + "rows <= 900",
    ),
    "even rows": (
        lambda m, b: when(lambda b: b["x"].shape[0] % 2 == 0, m, b),
        BY_ROWS + "Ne(Mod(rows, 2), 0)",
    ),
    "one row": (
        lambda m, b: when(lambda b: b["x"].shape[0] == 1, m, b),
        "is 1.7 off the module with 1 rows, at most 3.4e-05 is",
    ),
    "as many ids as rows": (
        lambda m, b: when(lambda b: b["s.values"].shape[0] == b["x"].shape[0], m, b),
        BY_ROWS + "Ne(ids of s, rows)",
    ),
    "numbers": (
        lambda m, b: when(lambda b: b["x"].sum() > 0, m, b),
        CANNOT + "GuardOnDataDependentSymNode: Could not guard on data-dependent expression",
    ),
    "buffer": (changes_a_buffer, "it changes its buffers or inputs"),
    "input": (changes_its_input, "it changes its buffers or inputs"),
    "no dict": (lambda m, b: m.layer(b["x"]), "it does not give a dict"),
    "random": (
        lambda m, b: {"x": m.layer(b["x"]) + 1e-9 * torch.rand(WIDTH)},
        "draws random numbers",
    ),
    "dropout": (
        lambda m, b: {"x": nn.functional.dropout(m.layer(b["x"]), 0.5)},
        "draws random numbers",
    ),
}


@pytest.mark.parametrize(("forward", "why"), DECLINED.values(), ids=DECLINED)
def test_what_cannot_be_followed_is_told(forward: Forward, why: str) -> None:
    found = as_graph(Small(forward, **parts()))
    assert isinstance(found, str)
    assert found.startswith(why)


def test_the_module_is_left_as_it_was() -> None:
    module = Small(attended, **parts())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = module(draw(7))["x"]
    captured(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module(draw(7))["x"], expected)
    assert "forward" not in vars(module.sequences)
