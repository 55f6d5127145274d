"""What many tests share: one trained model, one archive of it, one real server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples.movielens import train
from tests.support.paths import ROOT
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe

# Tests run beside a server and each other on two cores.
torch.set_num_threads(1)
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A running TorchServe without models; what a test registers, it unregisters."""
    with TorchServe(
        tmp_path_factory.mktemp("torchserve"), environment={"PYTHONPATH": str(ROOT)}
    ) as running:
        yield running


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


@pytest.fixture(scope="session")
def movielens(server: TorchServe, movielens_archive: Path) -> Iterator[TorchServe]:
    """The server with the trained model ready."""
    answer = server.register(movielens_archive)
    assert answer.is_success, answer.text
    yield server
    server.unregister("movielens")
