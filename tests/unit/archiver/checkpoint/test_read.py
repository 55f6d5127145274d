"""Checkpoints of every usual format, and what is none."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save

from tests.support.factories.dmp import build
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_handler.errors import BuildError
from torchrec_handler.ranks import init_process_group


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(build("cpu").state_dict())


def write(state: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    """Write a state in one of the formats."""
    if kind == "torch.save":
        torch.save(state, folder / "weights.pt")
        return folder / "weights.pt"
    if kind == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    if kind == "legacy":
        torch.save(state, folder / "weights.pt", _use_new_zipfile_serialization=False)
        return folder / "weights.pt"
    if kind == "distributed":
        init_process_group()
        save(state, checkpoint_id=folder / "checkpoint")
        return folder / "checkpoint"
    names = sorted(state)
    suffix, write_file = (".bin", torch.save) if kind == "bins" else (".safetensors", save_file)
    files = {name: f"model-{at % 2}{suffix}" for at, name in enumerate(names)}
    for file in set(files.values()):
        write_file({name: state[name] for name in names if files[name] == file}, folder / file)
    if kind == "ranks":
        return folder
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    return index if kind == "index" else folder


@pytest.mark.parametrize(
    "kind",
    ["torch.save", "legacy", "safetensors", "index", "sharded", "bins", "ranks", "distributed"],
)
def test_every_format_gives_the_same_tensors(
    state: dict[str, torch.Tensor], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    held = read_checkpoint(write(state, kind, tmp_path), tmp_path / "scratch").entries
    assert held.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(held[name].read(), value), name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "weights: none.pt does not exist"),
        (
            "bad.safetensors",
            b"12345678",
            "weights: bad.safetensors cannot be read as safetensors: ",
        ),
        (
            "bad.pt",
            b"hello",
            (
                "weights: bad.pt cannot be read as a torch.save checkpoint: it is none, or "
                "damaged; give the file or folder that training saved"
            ),
        ),
        (
            "bad.safetensors.index.json",
            b"{}",
            (
                "weights: bad.safetensors.index.json is not an index of weights "
                "(KeyError('weight_map'))"
            ),
        ),
        (
            "folder",
            b"",
            (
                "weights: folder is a folder without .metadata (torch.distributed.checkpoint), "
                "one *.safetensors.index.json or *.bin.index.json, or files of ranks (.pt, .pth, "
                ".bin, .ckpt, .safetensors)"
            ),
        ),
    ],
)
def test_what_is_no_checkpoint_is_named(
    name: str,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BuildError, match=re.escape(message)):
        read_checkpoint(Path(name), tmp_path)


@pytest.mark.parametrize(("saved", "held"), [([1], "a list"), (torch.zeros(1), "a Tensor")])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, saved: Any, held: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(saved, path)
    with pytest.raises(BuildError) as caught:
        read_checkpoint(path, tmp_path)
    assert str(caught.value) == (
        f"weights: {path} holds {held}, expected a state_dict: a dict of names and tensors, or a "
        "dict with one in it"
    )


def test_files_of_a_folder_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """Checkpoints of two epochs are not the files of two ranks."""
    for epoch in (1, 2):
        torch.save({"over.bias": torch.full((2,), epoch)}, tmp_path / f"epoch{epoch}.pt")
    held = read_checkpoint(tmp_path, tmp_path).entries
    with pytest.raises(BuildError) as caught:
        held["over.bias"].read()
    assert str(caught.value) == (
        f"weights: over.bias differs between {tmp_path / 'epoch1.pt'} and epoch2.pt; a folder "
        "holds one checkpoint in the files of its ranks: give one file where each is a checkpoint"
    )


def test_a_damaged_distributed_checkpoint_is_named(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = write(state, "distributed", tmp_path)
    for piece in folder.glob("*.distcp"):
        piece.write_bytes(b"")
    message = f"weights: {folder} cannot be read as a torch.distributed.checkpoint: "
    with pytest.raises(BuildError, match=re.escape(message)):
        read_checkpoint(folder, tmp_path).entries["over_arch.model.1.bias"].read()
