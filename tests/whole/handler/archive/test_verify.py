"""A good archive passes; each broken one is refused by name, before anything in it is used."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from tests.support.archives import good
from tests.support.archives.broken import BROKEN, BROKEN_WHERE_NO_CODE_IS
from torchrec_handler.archive.format import (
    DENSE,
    INDEX,
    MANIFEST,
    PACKAGE,
    REQUIREMENTS,
    SAMPLES,
    TABLES,
    sha256,
)
from torchrec_handler.archive.verify import verify
from torchrec_handler.errors import ArchiveError


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a good archive with every member that there can be; not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "requirements.txt").write_text("httpx\n")
    return good.build(
        folder, archive_format="no-archive", requirements_file=folder / "requirements.txt"
    )


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    """The good archive's folder, to break."""
    return Path(shutil.copytree(archive, tmp_path / "archive"))


def test_a_good_archive_is_read(archive: Path) -> None:
    found = verify(archive)
    assert (found.folder, found.package) == (archive, archive / PACKAGE)
    assert found.index is not None
    assert set(found.index.sha256) | {INDEX} == {
        str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()
    }


def test_an_archive_without_an_index_is_a_plain_one(copy: Path) -> None:
    for member in (INDEX, TABLES, DENSE, SAMPLES):
        (copy / member).unlink()
    assert verify(copy).index is None


def test_a_plain_archive_s_package_may_have_any_name(copy: Path) -> None:
    for member in (INDEX, TABLES, DENSE, SAMPLES):
        (copy / member).unlink()
    (copy / PACKAGE).rename(copy / "my.pt")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["model"]["serializedFile"] = "my.pt"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert verify(copy).package == copy / "my.pt"


@pytest.mark.parametrize("name", BROKEN_WHERE_NO_CODE_IS)
def test_members_without_code_are_read_only_for_a_full_check(name: str, copy: Path) -> None:
    """tables.bin is mapped: a worker starts without reading it, whatever its size."""
    message = BROKEN_WHERE_NO_CODE_IS[name](copy)
    assert verify(copy).index is not None
    with pytest.raises(ArchiveError) as caught:
        verify(copy, full=True)
    assert str(caught.value) == message


def test_a_good_archive_passes_a_full_check(archive: Path) -> None:
    assert verify(archive, full=True) == verify(archive)


def test_a_newer_minor_version_is_served_with_a_warning(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = {**json.loads((copy / INDEX).read_text()), "format_version": "1.9", "owner": "shop"}
    (copy / INDEX).write_text(json.dumps(newer))
    with caplog.at_level(logging.WARNING):
        assert verify(copy).index is not None
    assert caplog.messages == [
        "archive.json: written in format 1.9, read as 1.1; newer fields are ignored"
    ]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_refused(name: str, copy: Path) -> None:
    message = BROKEN[name](copy)
    with pytest.raises(ArchiveError) as caught:
        verify(copy)
    assert str(caught.value) == message


def put(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("print('run')")


def without_requirements(folder: Path) -> None:
    """With them TorchServe may install beside the members."""
    (folder / REQUIREMENTS).unlink()
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model"].pop("requirementsFile")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    index = json.loads((folder / INDEX).read_text())
    index["sha256"].pop(REQUIREMENTS)
    index["sha256"][MANIFEST] = sha256(folder / MANIFEST)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["numpy.py", "torch/__init__.py", ".hidden", "MAR-INF/other"])
def test_what_is_not_listed_is_refused(name: str, copy: Path) -> None:
    """A worker's Python looks for modules in the archive's folder."""
    without_requirements(copy)
    assert verify(copy).index is not None
    put(copy, name)
    with pytest.raises(ArchiveError) as caught:
        verify(copy)
    assert str(caught.value) == (
        f"{name}: in {copy}, but not listed in archive.json; "
        "remove it, or build or copy the archive again"
    )


def test_many_that_are_not_listed_are_named_in_part(copy: Path, tmp_path: Path) -> None:
    without_requirements(copy)
    for number in range(6):
        put(copy, f"{number}.py")
    (copy / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ArchiveError) as caught:
        verify(copy)
    assert str(caught.value) == (
        f"0.py, 1.py, 2.py, 3.py, 4.py and 2 more: in {copy}, but not listed in archive.json; "
        "remove it, or build or copy the archive again"
    )


def test_what_torchserve_installs_for_a_model_may_lie_beside_it(copy: Path) -> None:
    put(copy, "httpx/__init__.py")
    assert verify(copy).index is not None


def test_a_folder_may_be_reached_by_a_link(copy: Path, tmp_path: Path) -> None:
    """As TorchServe reaches one that it serves in place."""
    without_requirements(copy)
    (tmp_path / "link").symlink_to(copy, target_is_directory=True)
    assert verify(tmp_path / "link").index is not None


def test_a_broken_package_is_not_imported(copy: Path) -> None:
    """Its digest is wrong, and that is said before its code could run."""
    message = BROKEN["a byte of predict_factory flipped"](copy)
    with pytest.raises(ArchiveError) as caught:
        good.load_folder(copy)
    assert str(caught.value) == message
