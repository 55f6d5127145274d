"""Files of torch.save: what is read out of them, and that nothing in them is run."""

import argparse
import os
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from tests.support.factories.dmp import build
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_archiver.checkpoint.saved import Record, load_saved
from torchrec_handler.errors import BuildError


class Harmful:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Custom:
    """Of a training script."""


def error_of(path: Path) -> str:
    with pytest.raises(BuildError) as caught:
        load_saved(path)
    return str(caught.value)


@pytest.mark.parametrize("function", [os.mkdir, eval])
def test_nothing_is_run(function: Any, tmp_path: Path) -> None:
    """Not even where the part that would run is beside the model's."""
    made, path = tmp_path / "made", tmp_path / "weights.pt"
    argument = str(made) if function is os.mkdir else f"__import__('os').mkdir({str(made)!r})"
    torch.save({"model": build("cpu").state_dict(), "x": Harmful(function, argument)}, path)
    assert error_of(path) == (
        f"weights: {path} holds objects that are no tensors "
        f"({function.__module__}.{function.__name__}), which are not loaded, since unpickling "
        "could run code; save the weights alone where it was trained, "
        "torch.save(model.state_dict(), PATH), or out of a file that you trust, "
        'torch.save(torch.load(OLD, weights_only=False)["model"], PATH)'
    )
    assert not made.exists()


def test_a_class_that_somebody_allowed_is_still_refused(tmp_path: Path) -> None:
    """What a factory's own code allows does not count, and is allowed again afterwards."""
    torch.save({"x": Custom()}, tmp_path / "weights.pt")
    before = get_safe_globals()
    add_safe_globals([Custom])
    try:
        assert f"({__name__}.Custom)" in error_of(tmp_path / "weights.pt")
        assert Custom in get_safe_globals()
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def test_looking_up_attributes_is_not_what_it_says(tmp_path: Path) -> None:
    """`getattr`, which a ShardedTensor's pickle calls, gives an inert class whatever is asked."""
    torch.save({"x": Harmful(getattr, OrderedDict, "fromkeys")}, tmp_path / "weights.pt")
    assert load_saved(tmp_path / "weights.pt") == {"x": Record}


def test_what_trainers_save_beside_weights_is_inert(tmp_path: Path) -> None:
    beside = {
        "best": np.float64(0.5),
        "history": np.zeros(3),
        "arguments": argparse.Namespace(path=Path("/x"), rate=0.1),
        "losses": defaultdict(list, {"a": [1.0]}),
    }
    torch.save({"weight": torch.ones(1), **beside}, tmp_path / "weights.pt")
    loaded = load_saved(tmp_path / "weights.pt")
    assert {type(loaded[name]) for name in ("best", "history", "arguments")} == {Record}
    assert vars(loaded["arguments"])["rate"] == 0.1
    assert loaded["losses"] == {"a": [1.0]}


def test_tensors_of_every_kind_are_read(tmp_path: Path) -> None:
    """Parameters, halves, transposed ones, two of one storage; none is copied into memory."""
    base = torch.arange(12.0).view(3, 4)
    state = OrderedDict(
        parameter=torch.nn.Parameter(base.clone()),
        half=base.half(),
        bfloat16=base.bfloat16(),
        transposed=base.t(),
        first=base[:2],
        second=base[1:],
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 4),
    )
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save({"model": state}, tmp_path / "weights.pt")
    held = read_checkpoint(tmp_path / "weights.pt", tmp_path).entries
    assert list(held) == [f"model.{name}" for name in state]
    for name, value in state.items():
        read = held[f"model.{name}"].read()
        assert not read.requires_grad
        assert read.dtype == value.dtype
        assert torch.equal(read, value)
    assert str(tmp_path / "weights.pt") in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert error_of(path) == (
        f"weights: {path} holds a whole pickled module (torch.nn.modules.linear.Linear), which is "
        "not loaded, since unpickling could run code; where it was trained, save its weights "
        "alone: torch.save(model.state_dict(), PATH)"
    )


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("weights.pt", b"", "empty"),
        ("weights.onnx", b"\x08\x07", "an ONNX model"),
        ("weights.bin", b"\x89HDF\r\n\x1a\nabc", "an HDF5 or Keras file"),
        ("scripted.pt", None, "a TorchScript archive"),
    ],
)
def test_what_is_not_of_torch_save_is_named(
    name: str, content: bytes | None, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is None:
        # torch.jit, which makes them, is deprecated.
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("scripted/data.pkl", b"")
            archive.writestr("scripted/constants.pkl", b"")
    else:
        path.write_bytes(content)
    assert error_of(path) == (
        f"weights: {path} is {kind}, expected a state_dict: torch.save(model.state_dict(), PATH) "
        "where it was trained"
    )
