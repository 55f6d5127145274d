"""A mapped file is watched: what is written into it is seen, what takes its name is no matter."""

import os
from pathlib import Path

import psutil
import pytest

from torchrec_handler.errors import Unusable
from torchrec_handler.tables import mapped
from torchrec_handler.tables.mapped import MappedFile

ADVICE = (
    "; it was changed while it was served. Give new tables a new version, or put a file in its "
    "place by renaming it"
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mapped, "SECONDS", 0.0)
    made = tmp_path / "tables.bin"
    made.write_bytes(bytes(100))
    os.utime(made, ns=(0, 10**9))
    return made


def watched(path: Path) -> MappedFile:
    with path.open("rb") as file:
        return MappedFile(path, file.fileno())


def test_what_is_left_alone_or_replaced_by_its_name_is_as_it_was(path: Path) -> None:
    file = watched(path)
    file.check()
    other = path.with_name("other")
    other.write_bytes(bytes(7))
    other.rename(path)
    file.check()
    path.unlink()
    file.check()


def test_a_file_of_another_size_is_named(path: Path) -> None:
    file = watched(path)
    os.truncate(path, 60)
    with pytest.raises(Unusable) as caught:
        file.check()
    assert str(caught.value) == f"{path}: received 60 bytes, expected 100{ADVICE}"


def test_a_file_written_to_in_place_is_named(path: Path) -> None:
    file = watched(path)
    with path.open("r+b") as other:
        other.write(b"x")
    os.utime(path, ns=(0, 3_500_000_000))
    with pytest.raises(Unusable) as caught:
        file.check()
    assert str(caught.value) == (f"{path}: written to 2.5 s after it was last before{ADVICE}")


def test_it_is_looked_at_once_in_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SECONDS", 3600.0)
    file = watched(path)
    os.truncate(path, 60)
    file.check()


def test_its_descriptor_goes_with_it(path: Path) -> None:
    process = psutil.Process()
    before = process.num_fds()
    file = watched(path)
    assert process.num_fds() == before + 1
    del file
    assert process.num_fds() == before
