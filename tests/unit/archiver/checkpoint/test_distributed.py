"""Folders of torch.distributed.checkpoint: what is taken, and that their metadata runs nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_saver import save

from tests.support.factories.dmp import DmpPredictModule, build
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_archiver.fit import fit
from torchrec_handler.errors import BuildError
from torchrec_handler.ranks import init_process_group
from torchrec_handler.tables.find import find_collections


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An application's state, as torchtnt and others keep it, with an optimizer."""
    init_process_group()
    torch.manual_seed(1)
    model = build("cpu")
    optimizer = {"state": {"over": {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    app = {"model": model.state_dict(), "optim": optimizer, "progress": {"epoch": 3}}
    save({"app": app, "step": torch.tensor(7)}, checkpoint_id=tmp_path / "checkpoint")
    (tmp_path / "scratch").mkdir()
    return tmp_path / "checkpoint"


def read(folder: Path) -> None:
    module = DmpPredictModule(build("meta"), "cpu")
    fit(read_checkpoint(folder, folder.parent / "scratch"), module, find_collections(module))


def test_the_model_is_found_among_an_application_s_entries(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "torchrec_archiver"):
        read(folder)
    assert caplog.messages == [
        "weights: took 12 entries under 'app.model.'; left app.optim.* (2), step, app.progress.*"
    ]
    # Only what was taken was put together.
    assert len(list((folder.parent / "scratch").iterdir())) == 12


def test_an_object_in_a_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    """Entries of bytes are pickles."""
    init_process_group()
    (tmp_path / "scratch").mkdir()
    made = tmp_path / "made"
    state = {"model": build("cpu").state_dict(), "extra": Harmful(made)}
    save(state, checkpoint_id=tmp_path / "checkpoint")
    read(tmp_path / "checkpoint")
    assert not made.exists()


def rewrite(folder: Path, change: Any) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(change(metadata)))


def error_of(folder: Path) -> str:
    with pytest.raises(BuildError) as caught:
        read(folder)
    return str(caught.value)


def test_metadata_runs_nothing(folder: Path, tmp_path: Path) -> None:
    def harm(metadata: Any) -> Any:
        metadata.planner_data = {"x": Harmful(tmp_path / "made")}
        return metadata

    rewrite(folder, harm)
    assert error_of(folder) == (
        f"weights: {folder} cannot be read as a torch.distributed.checkpoint: it refers to "
        "posix.mkdir, which such a file has no use for"
    )
    assert not (tmp_path / "made").exists()


def test_metadata_reads_nothing_outside_of_the_folder(folder: Path) -> None:
    def escape(metadata: Any) -> Any:
        for info in metadata.storage_data.values():
            info.relative_path = "../elsewhere.distcp"
        return metadata

    rewrite(folder, escape)
    assert error_of(folder) == (
        f"weights: {folder} cannot be read as a torch.distributed.checkpoint: .metadata names "
        "../elsewhere.distcp, which lies outside of the folder"
    )


def test_pieces_that_are_missing_are_named(folder: Path) -> None:
    name = "app.model.sparse_arch.embedding_bag_collection.embedding_bags.t2.weight"

    def cut(metadata: Any) -> Any:
        chunk = metadata.state_dict_metadata[name].chunks[0]
        chunk.sizes = torch.Size([60, 16])
        return metadata

    rewrite(folder, cut)
    assert error_of(folder) == (
        f"weights: {name}: rows 60 to 101 of 102 are missing in {folder}; give the folder that "
        "holds the files of all ranks, or save with torch.distributed.checkpoint"
    )


def test_what_is_no_metadata_is_refused(folder: Path) -> None:
    rewrite(folder, lambda _: {"a": 1})
    assert error_of(folder) == (
        f"weights: {folder} cannot be read as a torch.distributed.checkpoint: "
        ".metadata holds a dict"
    )
