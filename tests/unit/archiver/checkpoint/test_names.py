"""The model's part of a checkpoint, found by what the model expects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrec_archiver.checkpoint.names import Found, beside_model, find
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_handler.errors import BuildError

EXPECTED = ["dense.0.weight", "dense.0.bias", "sparse.embedding_bags.t.weight"]
ZERO = torch.zeros(1)
STATE = dict.fromkeys(EXPECTED, ZERO)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: ZERO for name in EXPECTED}


def found_in(content: Mapping[str, Any], expected: list[str] = EXPECTED) -> Found:
    return find([[name] for name in expected], [], read_checkpoint(content, Path()))


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (STATE, ""),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": ZERO}}}, "epoch": 3}, "model."),
        ({"model_state_dict": STATE}, "model_state_dict."),
        ({"app": {"model": STATE, "step": ZERO}}, "app.model."),
        ({"module": STATE}, "module."),
        ({"state_dict": prefixed("model.")}, "state_dict.model."),
        ({"state_dict": prefixed("_forward_module.net.")}, "state_dict._forward_module.net."),
        (prefixed("module."), "module."),
        (prefixed("_orig_mod.module."), "_orig_mod.module."),
        (prefixed("model._dmp_wrapped_module.module."), "model._dmp_wrapped_module.module."),
        # An optimizer's averages by the parameters' names are no model.
        ({"model": STATE, "optimizer": {"exp_avg": STATE}}, "model."),
    ],
)
def test_what_is_in_front_of_the_names_is_found(content: Mapping[str, Any], prefix: str) -> None:
    found = found_in(content)
    assert found.prefix == prefix
    assert found.lacks == ""
    assert found.names == {name: prefix + name for name in EXPECTED}


def test_wrappers_within_names_do_not_count() -> None:
    names = {
        "dense.0.weight": "net.dense._orig_mod.0.weight",
        "dense.0.bias": "net.dense._orig_mod.0.bias",
        "sparse.embedding_bags.t.weight": (
            "net._dmp_wrapped_module.sparse.module.embedding_bags.t.weight"
        ),
    }
    assert found_in(dict.fromkeys(names.values(), ZERO)).names == names


def test_wrappers_that_the_model_has_itself_do_not_count_either() -> None:
    """A model that was compiled in part, and its checkpoint from before."""
    expected = ["net._orig_mod.0.weight", "out.weight"]
    content = {"net.0.weight": ZERO, "out.weight": ZERO}
    assert found_in(content, expected).names == dict(zip(expected, content, strict=True))


def test_modules_that_are_called_as_wrappers_are_told_apart() -> None:
    """Where the names would be one without them."""
    expected = ["net.weight", "net.module.weight"]
    content = {f"model.{name}": ZERO for name in expected}
    assert found_in(content, expected).names == {name: f"model.{name}" for name in expected}


@pytest.mark.parametrize("content", [STATE, {"model": STATE}, {"state_dict": STATE, "step": 3}])
def test_a_prefix_that_the_checkpoint_lacks_is_found(content: dict[str, Any]) -> None:
    """The factory wraps the trained model in a module of its own."""
    expected = [f"net.inner.{name}" for name in EXPECTED]
    found = found_in(content, expected)
    assert found.lacks == "net.inner."
    assert {name: there.removeprefix(found.prefix) for name, there in found.names.items()} == {
        f"net.inner.{name}": name for name in EXPECTED
    }


def test_a_table_of_another_name_is_not_taken() -> None:
    """A prefix too many and one too few at once would fit anything."""
    found = found_in(
        {"sparse.embedding_bags.item.weight": ZERO}, ["sparse.embedding_bags.t.weight"]
    )
    assert found.names == {}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model": STATE, "ema": STATE}, "ema, model"),
        ({"app": {"model": STATE, "model_ema": STATE}}, "app.model, app.model_ema"),
        (
            {"state_dict": {**prefixed("model."), **prefixed("ema_model.")}},
            "state_dict.ema_model, state_dict.model",
        ),
        ({**STATE, "ema": STATE}, "the outermost, ema"),
        ({**prefixed("module."), **STATE}, "the outermost, module"),
    ],
)
def test_two_parts_that_fit_are_listed(content: Mapping[str, Any], parts: str) -> None:
    with pytest.raises(BuildError) as caught:
        found_in(content)
    assert str(caught.value) == (
        f"weights: 2 parts of the checkpoint fit the predict module: {parts}; choose one with "
        "--weights-key, or leave others out with --ignore-weights"
    )


def test_one_entry_under_two_names_is_refused() -> None:
    content = {**STATE, "dense.module.0.bias": ZERO}
    with pytest.raises(BuildError) as caught:
        found_in(content)
    assert str(caught.value) == (
        "weights: dense.0.bias and dense.module.0.bias are the same entry of the predict module; "
        "leave one out with --ignore-weights"
    )


def test_what_is_beside_the_model_is_told() -> None:
    """Outside of its dict anything, inside of it what optimizers and such are called."""
    content = {
        "model": {**STATE, "optimizer.step": ZERO, "criterion.weight": ZERO},
        "centers": {"a": ZERO},
    }
    held = read_checkpoint(content, Path())
    found = found_in(content)
    beside = {name: beside_model(held, found, name) for name in held.entries}
    assert [name for name, outside in beside.items() if outside] == [
        "model.optimizer.step",
        "centers.a",
    ]


def test_a_model_in_several_dicts_is_found() -> None:
    content = {
        "dense": {"0": {"weight": ZERO, "bias": ZERO}},
        "sparse": {"embedding_bags.t.weight": ZERO},
        "optimizer": {"state": ZERO},
    }
    found = found_in(content)
    assert (found.part, found.prefix) == ("", "")
    assert found.names == {name: name for name in EXPECTED}
    assert beside_model(read_checkpoint(content, Path()), found, "optimizer.state")
