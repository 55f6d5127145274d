"""Folders as torchsnapshot 0.1.0 writes them; it is not installed, so they are written here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_handler.errors import BuildError

ROWS = torch.arange(24.0).view(6, 4)
STEPS = torch.tensor([1, 2, 3], dtype=torch.int8)


class Writer:
    """A snapshot of two ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = {
            "0/app": {"type": "dict", "keys": ["model", "epoch"]},
            "0/app/epoch": {"type": "int", "serialized_value": "3", "replicated": False},
            "0/app/model": {"type": "OrderedDict", "keys": ["over.weight"]},
        }

    def tensor(self, value: torch.Tensor, file: str) -> dict[str, Any]:
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as opened:
            start = opened.tell()
            opened.write(value.contiguous().numpy().tobytes())
            return {
                "type": "Tensor",
                "location": file,
                "serializer": "buffer_protocol",
                "dtype": str(value.dtype),
                "shape": list(value.shape),
                "replicated": False,
                "byte_range": [start, opened.tell()],
            }

    def shard(self, rows: slice, columns: slice, file: str) -> dict[str, Any]:
        value = ROWS[rows, columns]
        return {
            "offsets": [rows.start, columns.start],
            "sizes": list(value.shape),
            "tensor": self.tensor(value, file),
        }

    def write(self) -> Path:
        document = {"version": "0.1.0", "world_size": 2, "manifest": self.manifest}
        (self.folder / ".snapshot_metadata").write_text(json.dumps(document), encoding="utf-8")
        return self.folder


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """Row-wise and column-wise tables, and a tensor that is not aligned in its file."""
    made = Writer(tmp_path / "snapshot")
    made.folder.mkdir()
    table = "app/model/sparse.embedding_bags.t%2F0.weight"
    rows = [made.shard(slice(at, at + 3), slice(0, 4), f"sharded/{at}") for at in (0, 3)]
    made.manifest["0/app/model/steps"] = made.tensor(STEPS, "batched/0")
    made.manifest["0/app/model/over.weight"] = made.tensor(ROWS, "batched/0")
    made.manifest[f"0/{table}"] = {"type": "ShardedTensor", "shards": rows[:1]}
    made.manifest[f"1/{table}"] = {"type": "ShardedTensor", "shards": rows[1:]}
    columns = [made.shard(slice(0, 6), slice(at, at + 2), f"sharded/c{at}") for at in (0, 2)]
    chunked = {"type": "ChunkedTensor", "dtype": "torch.float32", "shape": [6, 4]}
    made.manifest["0/app/model/wide"] = {**chunked, "chunks": columns, "replicated": False}
    torch.save(ROWS, made.folder / "saved")
    saved = {**made.manifest["0/app/model/over.weight"], "location": "saved"}
    made.manifest["0/app/model/odd"] = {**saved, "serializer": "torch_save", "byte_range": None}
    return made


def test_the_tensors_of_all_ranks_are_read(writer: Writer, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(writer.write(), tmp_path)
    assert checkpoint.others == ["app.epoch"]
    read = {name: entry.read() for name, entry in checkpoint.entries.items()}
    assert {entry.part for entry in checkpoint.entries.values()} == {"app.model"}
    assert torch.equal(read.pop("app.model.steps"), STEPS)
    assert list(read) == [
        "app.model.over.weight",
        "app.model.sparse.embedding_bags.t/0.weight",
        "app.model.wide",
        "app.model.odd",
    ]
    for name, value in read.items():
        assert torch.equal(value, ROWS), name


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"location": "../x"}, "../x lies outside of the folder"),
        ({"location": "x"}, "x does not exist"),
        (
            {"serializer": "per_tensor_qtensor"},
            "torch.float32 by per_tensor_qtensor is not known here",
        ),
        (
            {"byte_range": [0, 4000]},
            "batched/0 has no 96 bytes from 0 to 4000 for shape [6, 4]",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    writer: Writer, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    writer.manifest["0/app/model/over.weight"] |= change
    entries = read_checkpoint(writer.write(), tmp_path).entries
    with pytest.raises(BuildError) as caught:
        entries["app.model.over.weight"].read()
    assert str(caught.value) == (
        f"weights: {writer.folder} cannot be read as a torchsnapshot: app.model.over.weight: "
        f"{reason}"
    )


def test_a_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    """Tags that would make Python objects are not YAML's safe ones."""
    tag = "!!python/object/apply:os.mkdir [made]"
    for content in ("a: 1", f"manifest: {tag}"):
        (tmp_path / ".snapshot_metadata").write_text(content, encoding="utf-8")
        with pytest.raises(BuildError, match="cannot be read as a torchsnapshot: "):
            read_checkpoint(tmp_path, tmp_path)
