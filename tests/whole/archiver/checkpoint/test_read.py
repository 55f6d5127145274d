"""A checkpoint of a real two-rank training."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.factories.dmp import DmpPredictFactory, build, sample
from tests.support.paths import ROOT
from torchrec_archiver import build_archive
from torchrec_archiver.checkpoint import read as checkpoint
from torchrec_archiver.checkpoint.entries import Checkpoint, from_tensors
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_handler.errors import BuildError
from torchrec_handler.load.loader import load
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks under torchrun wrote."""
    folder = tmp_path_factory.mktemp("two_ranks")
    command = [str(Path(sys.executable).with_name("torchrun"))]
    command += ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command += ["-m", "tests.support.train_two_ranks", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder


def served(weights: Path, folder: Path, dtype: str) -> Predictor:
    """Build an archive of a checkpoint and load it as a worker does."""
    config = folder / f"{dtype}.yaml"
    config.write_text(f"torchrec:\n  tables:\n    dtype: {dtype}\n", encoding="utf-8")
    archive = build_archive(
        model_name=dtype,
        version="1.0",
        factory=DmpPredictFactory,
        weights=weights,
        config_file=config,
        export_path=folder,
        archive_format="no-archive",
    )
    return load(archive, Options.model_validate({"tables": {"dtype": dtype}}), CPU)


def scores(predictor: Predictor) -> torch.Tensor:
    dense, jagged = sample()
    with torch.inference_mode():
        answer: torch.Tensor = predictor.module(
            {
                "float_features": dense,
                "id_list_features.lengths": jagged.lengths(),
                "id_list_features.values": jagged.values().int(),
            }
        )["default"]
    return answer


@pytest.mark.parametrize("kind", ["checkpoint", "sharded", "dtensor"])
def test_what_two_ranks_trained_serves_with_their_scores(
    two_ranks: Path, kind: str, tmp_path: Path
) -> None:
    """Table-wise, row-wise, column-wise and table-row-wise shards are one table again."""
    expected = torch.load(two_ranks / "scores.pt")
    assert expected.std() > 0.01
    exact = scores(served(two_ranks / kind, tmp_path, "float32"))
    np.testing.assert_allclose(exact, expected, atol=1e-6, rtol=0)
    quantized = scores(served(two_ranks / kind, tmp_path, "int8"))
    np.testing.assert_allclose(quantized, expected, atol=5e-3, rtol=0)
    assert not torch.equal(quantized, exact)


@pytest.mark.parametrize("kind", ["sharded", "dtensor"])
def test_shards_of_a_rank_that_is_not_there_are_named(
    two_ranks: Path, kind: str, tmp_path: Path
) -> None:
    """One rank's file has half of a row-wise table."""
    held = read_checkpoint(two_ranks / kind / "rank0.pt", tmp_path).entries
    table = "model.sparse_arch.embedding_bag_collection.embedding_bags"
    for name, missing in {
        "t0": "rows 0 to 99 of 100",  # table-wise, on rank 1
        "t1": "rows 51 to 100 of 101",
        "t2": "columns 8 to 15 of 16",
    }.items():
        with pytest.raises(BuildError) as caught:
            held[f"{table}.{name}.weight"].read()
        assert str(caught.value) == (
            f"weights: {table}.{name}.weight: {missing} are missing in "
            f"{two_ranks / kind / 'rank0.pt'}; give the folder that holds the files of all ranks, "
            "or save with torch.distributed.checkpoint"
        )


class Arrays:
    """A format as somebody adds it: NumPy's .npz."""

    def fits(self, path: Path) -> bool:
        return path.suffix == ".npz"

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        with np.load(path) as held:
            return from_tensors({path: {n: torch.from_numpy(held[n]) for n in held}}, scratch)


def test_a_format_is_one_class_and_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    state = build("cpu").state_dict()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    torch.save(state, tmp_path / "weights.pt")
    monkeypatch.setattr(checkpoint, "FORMATS", (Arrays(), *checkpoint.FORMATS))
    (tmp_path / "of arrays").mkdir()
    (tmp_path / "of torch").mkdir()
    of_arrays = scores(served(tmp_path / "weights.npz", tmp_path / "of arrays", "float32"))
    of_torch = scores(served(tmp_path / "weights.pt", tmp_path / "of torch", "float32"))
    assert of_arrays.std() > 0
    assert torch.equal(of_arrays, of_torch)
