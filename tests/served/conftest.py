"""One server for all, and the trained example in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import dataset, movielens_archive, short_folder, trained
from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe

__all__ = ["dataset", "movielens_archive", "short_folder", "trained"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A running TorchServe without models; what a test registers, it unregisters."""
    with TorchServe(
        tmp_path_factory.mktemp("torchserve"), environment={"PYTHONPATH": str(ROOT)}
    ) as running:
        yield running


@pytest.fixture(scope="session")
def movielens(server: TorchServe, movielens_archive: Path) -> Iterator[TorchServe]:
    """The server with the trained model ready."""
    answer = server.register(movielens_archive)
    assert answer.is_success, answer.text
    yield server
    server.unregister("movielens")
