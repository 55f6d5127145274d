"""The command line: what it builds and prints, and one ERROR line where a build fails."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.support.archives import good
from tests.support.command_line import build
from tests.support.factories.packaged import Scale
from tests.support.factories.ranking import RankingPredictFactory, seeded
from tests.support.paths import ROOT
from torchrec_archiver import DefaultPackager
from torchrec_handler.archive.format import (
    INDEX,
    MANIFEST,
    MODEL_CONFIG,
    PACKAGE,
    REQUIREMENTS,
    Index,
)
from torchrec_handler.load.package import open_package

SAMPLE = {
    "float_features": [[0.5, 1.0, 1.5]],
    "id_list_features.lengths": [1, 1, 2],
    "id_list_features.values": [49, 39, 0, 9],
    "id_score_list_features.lengths": [1, 0],
    "id_score_list_features.values": [29],
    "id_score_list_features.weights": [0.5],
}
"""A request of the ranking model."""


def test_every_option_in_one_real_command(tmp_path: Path, store: Path, workspace: Path) -> None:
    """The installed console script, from the folder of the user's own modules."""
    state = {f"module.{name}": value for name, value in seeded().state_dict().items()}
    checkpoint = {"model": state, "ema": {**state, "criterion.weight": torch.zeros(1)}}
    torch.save(checkpoint, tmp_path / "weights.pt")
    (tmp_path / "samples.jsonl").write_text(f"{json.dumps(SAMPLE)}\n")
    (tmp_path / "scale.pkl").write_bytes(pickle.dumps(Scale(2.0)))
    (tmp_path / "five.txt").write_text("5")
    (tmp_path / "scale.txt").write_text("7")
    (tmp_path / "scale.bin").write_bytes(b"\x0b")
    (tmp_path / "model-config.yaml").write_text("torchrec: {tables: {dtype: int8}}\n")
    (tmp_path / "needs.txt").write_text("httpx\n")
    (store / "shop.mar").write_text("an old one")
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("torchrec-archiver")), "build"),
            *("--model-name", "shop", "--version", "2.0"),
            *("--factory", "tests.support.factories.packaged:ConfiguredPredictFactory"),
            *("--config", f"scale.pkl={tmp_path}/scale.pkl"),
            *("--config", f"scale.txt={tmp_path}/five.txt"),
            *("--weights", str(tmp_path / "weights.pt"), "--weights-map", "module.="),
            *("--weights-key", "ema", "--ignore-weights", "criterion.*"),
            *("--samples", str(tmp_path / "samples.jsonl"), "--max-output-error", "1e6"),
            *("--extra-files", f"{tmp_path}/scale.txt, {tmp_path}/scale.bin"),
            *("--packager", "tests.support.factories.packagers:LoaderCodePackager"),
            *("--export-path", str(store)),
            *("--config-file", str(tmp_path / "model-config.yaml")),
            *("--requirements-file", str(tmp_path / "needs.txt")),
            *("--archive-format", "zip-store", "--force"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (
        0,
        (
            "INFO: requirements.txt: TorchServe installs it only where it has "
            "install_py_dep_per_model=true\n"
        ),
    )
    assert done.stdout.splitlines()[-1] == str(store / "shop.mar")
    assert [path.name for path in store.iterdir()] == ["shop.mar"]
    assert not list(workspace.iterdir())
    with zipfile.ZipFile(store / "shop.mar") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    folder = good.unpack(store / "shop.mar", tmp_path / "unpacked")
    model = json.loads((folder / MANIFEST).read_text())["model"]
    assert (model["modelName"], model["modelVersion"]) == ("shop", "2.0")
    assert (folder / REQUIREMENTS).read_text() == "httpx\n"
    assert (folder / MODEL_CONFIG).read_text().startswith("torchrec: {tables: {dtype: int8}}\n")
    assert Index.loads((folder / INDEX).read_text()).extra_files == ("scale.txt", "scale.bin")
    assert open_package(folder / PACKAGE).factory.made_by == "my loader"
    predictor = good.load_folder(folder)
    torch.testing.assert_close(
        good.scores(predictor.module), good.expected_scores() * (2 * 5 * 7 * 11)
    )


def test_the_archive_s_path_is_printed_last(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(store, "--archive-format", "default") == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[-1] == str(store / "ranking.mar")
    assert error == "INFO: weights: none are given, so those that the factory makes are packed\n"


@pytest.mark.parametrize("force", ["-f", "--force"])
def test_an_archive_is_replaced_by_force(store: Path, force: str) -> None:
    (store / "ranking.mar").write_text("an old one")
    assert build(store, force) == 0
    assert zipfile.is_zipfile(store / "ranking.mar")


def test_extra_files_may_be_given_together_and_one_by_one(store: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in paths:
        path.write_text(path.name)
    together = f"{paths[0]},{paths[1]}"
    assert build(store, "--extra-files", together, "--extra-files", paths[2]) == 0
    folder = good.unpack(store / "ranking.mar", tmp_path / "unpacked")
    index = Index.loads((folder / INDEX).read_text())
    assert index.extra_files == ("a.txt", "b.txt", "c.txt")


def test_a_factory_out_of_another_package_is_packed_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a packager of the user's own, which knows where the factory came from."""
    first = tmp_path / "first.pt"
    DefaultPackager.save_predict_factory(RankingPredictFactory, {}, first, {})
    (tmp_path / "repacked.py").write_text(
        "from torch.package import PackageImporter, sys_importer\n"
        "from torchrec_archiver import DefaultPackager\n"
        "importer = PackageImporter('first.pt')\n"
        "module = importer.import_module('tests.support.factories.ranking')\n"
        "RepackedPredictFactory = module.RankingPredictFactory\n"
        "class RepackingPackager(DefaultPackager):\n"
        "    @classmethod\n"
        "    def save_predict_factory(cls, *args):\n"
        "        importers = [importer, sys_importer]\n"
        "        super().save_predict_factory(*args, package_importer=importers)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    named = ("--factory", "repacked:RepackedPredictFactory")
    assert build(store, *named, "--packager", "repacked:RepackingPackager") == 0
    folder = good.unpack(store / "ranking.mar", tmp_path / "unpacked")
    torch.testing.assert_close(good.scores(good.load_folder(folder).module), good.expected_scores())


def test_a_checkpoint_that_does_not_fit_is_listed_under_one_error(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(seeded().state_dict())
    state["over.0.wieght"] = state.pop("over.0.weight")
    torch.save(state, tmp_path / "weights.pt")
    assert build(store, "--weights", tmp_path / "weights.pt") == 1
    out, error = capsys.readouterr()
    assert not out
    assert error == (
        "ERROR: weights: the checkpoint does not fit the predict module\n"
        "  missing: over.0.weight (did you mean over.0.wieght?)\n"
        "  unexpected: over.0.wieght (did you mean over.0.weight?)\n"
    )
    assert not list(store.iterdir())


def test_a_training_checkpoint_is_taken_with_one_line_of_what_was_taken(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"model": seeded().state_dict(), "optimizer": {"lr": 0.1}, "epoch": 3}
    torch.save(job, tmp_path / "last.pt")
    assert build(store, "--weights", tmp_path / "last.pt") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "weights" in line]
    assert said == ["INFO: weights: took 9 entries under 'model.'; left optimizer.*, epoch"]


def test_a_factory_that_fails_is_one_error_line(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The build runs the code that will serve, so its errors are the worker's."""
    name = "tests.support.factories.packaged:TelemetryPredictFactory"
    packager = "tests.support.factories.packagers:HousePackager"
    assert build(store, "--factory", name, "--packager", packager) == 1
    out, error = capsys.readouterr()
    assert not out
    assert good.unmangled(error) == (
        "ERROR: TelemetryPredictFactory.create_predict_module raised NotImplementedError: Object "
        "'<torch_package>.tests.support.factories.telemetry.send' was mocked out during packaging "
        "but it is being used in __call__\n"
    )
    assert not list(store.iterdir())
