"""Checkpoints of every usual format, one written by a real two-rank training among them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save

from tests.factories.dmp import DmpPredictFactory, build, sample
from torchrec_archiver import build_archive
from torchrec_archiver.checkpoint import read_checkpoint, rename
from torchrec_handler.errors import BuildError
from torchrec_handler.load.loader import Predictor, load
from torchrec_handler.load.process_group import init_process_group
from torchrec_handler.options import Options

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks under torchrun wrote."""
    folder = tmp_path_factory.mktemp("two_ranks") / "checkpoint"
    command = [str(Path(sys.executable).with_name("torchrun"))]
    command += ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command += ["-m", "tests.archiver.train_two_ranks", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(build("cpu").state_dict())


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


def test_what_two_ranks_trained_serves_with_their_scores(two_ranks: Path, tmp_path: Path) -> None:
    """Table-wise, row-wise and column-wise shards are one table again."""
    expected = torch.load(two_ranks / "scores.pt")
    assert expected.std() > 0.01
    exact = scores(served(two_ranks, tmp_path, "float32"))
    np.testing.assert_allclose(exact, expected, atol=1e-6, rtol=0)
    quantized = scores(served(two_ranks, tmp_path, "int8"))
    np.testing.assert_allclose(quantized, expected, atol=5e-3, rtol=0)
    assert not torch.equal(quantized, exact)


def write(state: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    """Write a state in one of the formats."""
    if kind == "torch.save":
        torch.save(state, folder / "weights.pt")
        return folder / "weights.pt"
    if kind == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    if kind == "distributed":
        init_process_group()
        save(state, checkpoint_id=folder / "checkpoint")
        return folder / "checkpoint"
    names = sorted(state)
    files = {name: f"model-{at % 2}.safetensors" for at, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    return index if kind == "index" else folder


@pytest.mark.parametrize("kind", ["torch.save", "safetensors", "index", "sharded", "distributed"])
def test_every_format_gives_the_same_tensors(
    state: dict[str, torch.Tensor], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    read = read_checkpoint(write(state, kind, tmp_path), tmp_path / "scratch")
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(read[name], value), name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "weights: none.pt does not exist"),
        (
            "bad.safetensors",
            b"12345678",
            "weights: bad.safetensors cannot be read as safetensors: ",
        ),
        ("bad.pt", b"hello", "weights: bad.pt cannot be read as a torch.save checkpoint: "),
        (
            "bad.safetensors.index.json",
            b"{}",
            (
                "weights: bad.safetensors.index.json is not an index of safetensors "
                "(KeyError('weight_map'))"
            ),
        ),
        (
            "folder",
            b"",
            (
                "weights: folder is a folder without .metadata (torch.distributed.checkpoint) "
                "or one *.safetensors.index.json, expected one of them or a file"
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


@pytest.mark.parametrize(
    ("saved", "held"),
    [
        ([torch.zeros(1)], "a list"),
        (torch.zeros(1), "a Tensor"),
        (
            {"model": {"over.0.bias": torch.zeros(1)}, "epoch": 3},
            "a dict whose model, epoch are no tensors",
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, saved: Any, held: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(saved, path)
    with pytest.raises(BuildError) as caught:
        read_checkpoint(path, tmp_path)
    assert str(caught.value) == f"weights: {path} holds {held}, expected a state_dict of tensors"


def test_a_damaged_distributed_checkpoint_is_named(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = write(state, "distributed", tmp_path)
    for piece in folder.glob("*.distcp"):
        piece.write_bytes(b"")
    message = f"weights: {folder} cannot be read as a torch.distributed.checkpoint: "
    with pytest.raises(BuildError, match=re.escape(message)):
        read_checkpoint(folder, tmp_path)


def test_a_pickled_object_is_not_loaded(tmp_path: Path) -> None:
    """Nothing in a checkpoint is run: weights_only."""
    torch.save({"model": build("cpu")}, tmp_path / "weights.pt")
    with pytest.raises(BuildError, match="checkpoint: Weights only load failed"):
        read_checkpoint(tmp_path / "weights.pt", tmp_path)


def test_prefixes_are_replaced(state: dict[str, torch.Tensor]) -> None:
    """The longest prefix that fits wins; names without one stay."""
    trained = {f"module.{name}": value for name, value in state.items()}
    assert rename(trained, {"module.": ""}).keys() == state.keys()
    value = torch.zeros(1)
    assert list(rename({"a.b.c": value, "a.d": value, "e": value}, {"a.": "x.", "a.b.": "y."})) == [
        "y.c",
        "x.d",
        "e",
    ]


def test_a_wrong_prefix_is_named() -> None:
    value = torch.zeros(1)
    with pytest.raises(
        BuildError,
        match=re.escape(
            "weights-map: no entry starts with 'module.'; the first entries are a.b, c.d"
        ),
    ):
        rename({"a.b": value, "c.d": value}, {"module.": ""})
    with pytest.raises(
        BuildError, match=re.escape("weights-map: two entries would be called b, one of them a.b")
    ):
        rename({"b": value, "a.b": value}, {"a.": ""})
