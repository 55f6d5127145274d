"""Fixtures that several tiers take into their conftest.py."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.movielens import train
from examples.movielens.data import Dataset, load
from torchrec_archiver import build_archive


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that staging folders are made in, also those of processes the test starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store(workspace: Path) -> Path:
    """An empty model store."""
    folder = workspace.parent / "model_store"
    folder.mkdir()
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for any user's servers: its path leaves room for a socket's, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="serve-") as made:
        Path(made).chmod(0o777)
        yield Path(made)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return load()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `python -m examples.movielens.train` wrote."""
    folder = tmp_path_factory.mktemp("movielens")
    train.train(folder, train.TrainOptions(progress=False))
    return folder


@pytest.fixture(scope="session")
def movielens_archive(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that the README builds."""
    return build_archive(
        model_name="movielens",
        version="1.0",
        factory="examples.movielens.factory:MovieLensPredictFactory",
        configs={"config.pkl": trained / "config.pkl"},
        weights=trained / "weights.pt",
        extra_files={"movies.json": trained / "movies.json"},
        export_path=tmp_path_factory.mktemp("archives"),
    )
