"""The two archives that their READMEs build."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.readme import Readme
from torchrec_archiver.server import TorchServe


@pytest.fixture(scope="session")
def two_tower_readme(tmp_path_factory: pytest.TempPathFactory) -> Readme:
    """The README after its sections Train and Archive."""
    return _built("two_tower", tmp_path_factory.mktemp("two_tower"), epochs=6)


@pytest.fixture(scope="session")
def sequence_readme(tmp_path_factory: pytest.TempPathFactory) -> Readme:
    """The README after its sections Train and Archive."""
    return _built("sequence", tmp_path_factory.mktemp("sequence"), epochs=2)


@pytest.fixture(scope="session")
def two_tower(server: TorchServe, two_tower_readme: Readme) -> Iterator[str]:
    """The address of a server with the towers ready."""
    yield from _served(server, two_tower_readme.folder / "model_store" / "two_tower.mar")


@pytest.fixture(scope="session")
def sequence(server: TorchServe, sequence_readme: Readme) -> Iterator[str]:
    """The address of a server with the next-movie model ready."""
    yield from _served(server, sequence_readme.folder / "model_store" / "sequence.mar")


def _built(example: str, folder: Path, epochs: int) -> Readme:
    readme = Readme(example, folder)
    (folder / "model_store").mkdir()
    output = f"--output build/{example}"
    readme.run("Train", {output: f"{output} --epochs {epochs} --threads 1"})
    readme.run("Archive")
    return readme


def _served(server: TorchServe, archive: Path) -> Iterator[str]:
    answer = server.register(archive)
    assert answer.is_success, answer.text
    yield str(server.inference.base_url).rstrip("/")
    server.unregister(archive.stem)
