"""What a checkpoint holds: its parts, what to leave out, other names, and files of ranks."""

import re
from pathlib import Path

import pytest
import torch

from torchrec_archiver.checkpoint.entries import Checkpoint
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_handler.errors import BuildError

ZERO = torch.zeros(1)


def held(**content: object) -> Checkpoint:
    return read_checkpoint(content, Path())


JOB = held(
    state_dict={"model.over.bias": ZERO, "ema.over.bias": ZERO, "auc._metrics.x": ZERO},
    optimizer=[{"state": {0: {"step": ZERO}}, "lr": 0.1}],
    epoch=3,
)


def test_names_are_keys_with_dots_between() -> None:
    assert {name: entry.part for name, entry in JOB.entries.items()} == {
        "state_dict.model.over.bias": "state_dict",
        "state_dict.ema.over.bias": "state_dict",
        "state_dict.auc._metrics.x": "state_dict",
        "optimizer.0.state.0.step": "optimizer.0.state.0",
    }
    assert JOB.others == ["optimizer.0.lr", "epoch"]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("state_dict", ["model.over.bias", "ema.over.bias", "auc._metrics.x"]),
        ("state_dict.ema", ["over.bias"]),
        ("optimizer.0", ["state.0.step"]),
    ],
)
def test_a_part_is_taken_by_its_key(key: str, names: list[str]) -> None:
    """A dict's keys, or a prefix of names in it."""
    assert list(JOB.under(key).entries) == names
    assert {entry.part for entry in JOB.under(key).entries.values()} == (
        {"state.0"} if key == "optimizer.0" else {""}
    )


def test_a_key_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(BuildError) as caught:
        JOB.under("model")
    assert str(caught.value) == (
        "weights-key: nothing is under 'model'; the checkpoint has optimizer, "
        "optimizer.0.state.0, state_dict"
    )


@pytest.mark.parametrize("pattern", ["state_dict.auc.*", "auc._metrics.*", "*._metrics.*"])
def test_entries_are_left_out_by_pattern(pattern: str) -> None:
    """Of whole names, or of names in the innermost dict."""
    left = JOB.without([pattern, "epoch"])
    assert list(left.entries) == [name for name in JOB.entries if "_metrics" not in name]
    assert left.others == ["optimizer.0.lr"]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(BuildError) as caught:
        JOB.without(["*._metrics.*", "*.nothing"])
    assert str(caught.value) == (
        "ignore-weights: '*.nothing' matches no entry; the first entries are "
        "state_dict.model.over.bias, state_dict.ema.over.bias, state_dict.auc._metrics.x"
    )


def test_prefixes_are_replaced() -> None:
    """The longest prefix that fits wins; names without one stay."""
    renamed = held(**{"a.b.c": ZERO, "a.d": ZERO, "e": ZERO}).renamed({"a.": "x.", "a.b.": "y."})
    assert list(renamed.entries) == ["y.c", "x.d", "e"]
    # Whole names, and names in a dict.
    assert next(iter(JOB.renamed({"state_dict.model.": ""}).entries)) == "over.bias"
    assert next(iter(JOB.renamed({"model.": ""}).entries)) == "state_dict.over.bias"


def test_a_wrong_prefix_is_named() -> None:
    with pytest.raises(
        BuildError,
        match=re.escape(
            "weights-map: no entry starts with 'module.'; the first entries are a.b, c.d"
        ),
    ):
        held(**{"a.b": ZERO, "c.d": ZERO}).renamed({"module.": ""})
    with pytest.raises(
        BuildError, match=re.escape("weights-map: two entries would be called b, one of them a.b")
    ):
        held(**{"b": ZERO, "a.b": ZERO}).renamed({"a.": ""})


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(BuildError) as caught:
        held(**{"a": {"b": ZERO}, "a.b": ZERO})
    assert str(caught.value) == "weights: weights holds two entries that are called a.b"


def test_files_of_ranks_complete_each_other(tmp_path: Path) -> None:
    """In the order of their numbers; BatchNorm's own counts are the first's."""
    for rank in (0, 2, 10):
        state = {"over.bias": ZERO, f"table{rank}.weight": torch.full((1,), rank)}
        state["norm.running_mean"] = torch.full((1,), rank)
        torch.save({"model": state, "rank": rank}, tmp_path / f"rank{rank}.pt")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    entries = read_checkpoint(tmp_path, tmp_path).entries
    assert list(entries) == [
        "model.over.bias",
        "model.table0.weight",
        "model.norm.running_mean",
        "model.table2.weight",
        "model.table10.weight",
    ]
    assert entries["model.table10.weight"].read().item() == 10
    assert entries["model.norm.running_mean"].read().item() == 0
