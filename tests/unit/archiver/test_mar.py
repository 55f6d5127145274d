"""The archive file: its work hidden, its place taken at once."""

import errno
import json
import re
import signal
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from model_archiver.model_archiver_config import ModelArchiverConfig

from torchrec_archiver.mar import (
    STAGING_PREFIX,
    make_manifest,
    staging,
    write_archive,
)
from torchrec_archiver.store import ArchiveFormat, Place
from torchrec_handler.archive.format import HANDLER, MANIFEST, MODEL_CONFIG, PACKAGE
from torchrec_handler.errors import BuildError

FORMATS: list[tuple[ArchiveFormat, str]] = [
    ("default", "ranking.mar"),
    ("zip-store", "ranking.mar"),
    ("no-archive", "ranking"),
    ("tgz", "ranking.tar.gz"),
]


# The staging folder.


def test_the_work_is_done_outside_of_the_model_store(workspace: Path, store: Path) -> None:
    with staging(store) as folder:
        assert folder.parent == workspace
        assert folder.name.startswith(STAGING_PREFIX)
        assert not list(store.iterdir())
    assert not list(workspace.iterdir())


def test_the_work_is_done_on_the_model_store_s_file_system(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the temporary folder is on another one, a rename from there could not be atomic."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert Path(elsewhere).stat().st_dev != store.stat().st_dev
        monkeypatch.setattr(tempfile, "tempdir", elsewhere)
        with staging(store) as folder:
            assert folder.parent == store.parent
            assert folder.stat().st_dev == store.stat().st_dev
        assert not folder.exists()


def test_a_temporary_folder_in_the_model_store_is_not_used(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where TMPDIR is not set, and the work is done from the model store."""
    for inside in (store, store / "tmp"):
        inside.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(inside))
        with staging(store) as folder:
            assert folder.parent == store.parent


def test_a_volume_of_its_own_has_a_hidden_folder(workspace: Path) -> None:
    """Nothing else is on its file system, as for a model store mounted into a container."""
    volume = Path("/dev/shm")  # noqa: S108  the one that every Linux has
    assert volume.stat().st_dev not in {workspace.stat().st_dev, volume.parent.stat().st_dev}
    with staging(volume) as folder:
        assert folder.parent == volume
        assert folder.name.startswith(".")
    assert not folder.exists()
    assert not list(workspace.iterdir())


def test_a_model_store_that_cannot_be_written_is_named(workspace: Path) -> None:
    with pytest.raises(BuildError) as caught, staging(Path("/proc")):
        pass
    assert re.fullmatch(
        r"/proc/\.torchrec-archiver-\w+: cannot be written: No such file or directory",
        str(caught.value),
    )
    assert not list(workspace.iterdir())


def test_a_build_outside_of_the_main_thread_leaves_signals_alone(
    workspace: Path, store: Path
) -> None:
    """Only the main thread may set a handler; the application has its own."""
    before = signal.getsignal(signal.SIGTERM)

    def work() -> bool:
        with staging(store):
            return signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor() as threads:
        assert threads.submit(work).result()
    assert not list(workspace.iterdir())


def test_the_staging_folder_goes_whatever_happens(workspace: Path, store: Path) -> None:
    def fail(failure: BaseException) -> None:
        with staging(store) as folder:
            (folder / "half").write_text("an archive")
            raise failure

    for failure in (BuildError("no"), KeyboardInterrupt(), SystemExit(1), MemoryError()):
        with pytest.raises(type(failure)):
            fail(failure)
        assert not list(workspace.iterdir())
        assert not list(store.iterdir())


def test_what_cannot_be_written_is_an_error_with_its_reason(workspace: Path, store: Path) -> None:
    with pytest.raises(BuildError) as caught, staging(store) as folder:
        (folder / "nowhere" / "member").write_text("x")
    assert str(caught.value) == (
        f"{folder}/nowhere/member: cannot be written: No such file or directory"
    )
    assert not list(workspace.iterdir())


def test_a_full_disk_is_told_with_how_much_is_free(workspace: Path, store: Path) -> None:
    with pytest.raises(BuildError) as caught, staging(store):
        Path("/dev/full").write_text("x")
    assert caught.value.sentence == f"{workspace}: cannot be written: No space left on device"
    assert caught.value.hint
    assert caught.value.hint.endswith(
        f" GB are free in {workspace}; TMPDIR names another folder to work in"
    )


def test_a_folder_that_a_killed_build_left_is_removed(workspace: Path, store: Path) -> None:
    stale = workspace / f"{STAGING_PREFIX}stale"
    (stale / "ranking").mkdir(parents=True)
    (stale / "ranking" / "tables.bin").write_bytes(b"half")
    with staging(store) as folder:
        assert list(workspace.iterdir()) == [folder]


def test_the_folder_of_a_build_that_runs_is_left_alone(workspace: Path, store: Path) -> None:
    """Known by its lock, not by a process id: those repeat in containers."""
    with staging(store) as first, staging(store) as second:
        assert sorted(workspace.iterdir()) == sorted([first, second])
        assert first != second
    assert not list(workspace.iterdir())


def test_a_folder_that_cannot_be_opened_is_left_alone(workspace: Path, store: Path) -> None:
    """Another user's, in a temporary folder that all share; here: a link to nowhere."""
    closed = workspace / f"{STAGING_PREFIX}closed"
    closed.symlink_to(workspace / "nowhere")
    with staging(store):
        assert closed.is_symlink()
    assert list(workspace.iterdir()) == [closed]


def test_a_file_of_somebody_else_s_is_left_alone(workspace: Path, store: Path) -> None:
    (workspace / "ranking").mkdir()
    with staging(store):
        assert (workspace / "ranking").is_dir()
    assert list(workspace.iterdir()) == [workspace / "ranking"]


def test_sigterm_is_the_caller_s_again_afterwards(workspace: Path, store: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with staging(store):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert workspace.is_dir()


# The archive.


@pytest.fixture
def content(workspace: Path, store: Path) -> Iterator[Path]:
    """Staged members, as the build leaves them."""
    assert workspace.is_dir()
    with staging(store) as folder:
        staged = folder / "ranking"
        staged.mkdir()
        for member in (PACKAGE, MODEL_CONFIG, "tables.bin"):
            (staged / member).write_text(f"what {member} holds")
        yield staged


def write(content: Path, store: Path, archive_format: ArchiveFormat) -> Path:
    manifest = make_manifest("ranking", "1.0", None)
    return write_archive(content, manifest, Place(stem=store / "ranking"), archive_format)


def members(archive: Path) -> dict[str, str]:
    if archive.is_dir():
        return {
            str(path.relative_to(archive)): path.read_text()
            for path in archive.rglob("*")
            if path.is_file()
        }
    if archive.suffix == ".mar":
        with zipfile.ZipFile(archive) as opened:
            return {name: opened.read(name).decode() for name in opened.namelist()}
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("ranking/")] = file.read().decode()
    return found


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_every_format_holds_the_members_and_a_manifest(
    content: Path, store: Path, archive_format: ArchiveFormat, name: str
) -> None:
    archive = write(content, store, archive_format)
    assert list(store.iterdir()) == [store / name]
    found = members(archive)
    manifest = json.loads(found.pop(MANIFEST))
    assert found == {
        member: f"what {member} holds" for member in (PACKAGE, MODEL_CONFIG, "tables.bin")
    }
    assert manifest.pop("createdOn")
    assert manifest.pop("archiverVersion")
    assert manifest == {
        "runtime": ModelArchiverConfig.runtime,
        "model": {
            "modelName": "ranking",
            "modelVersion": "1.0",
            "handler": HANDLER,
            "serializedFile": PACKAGE,
            "configFile": MODEL_CONFIG,
        },
    }


@pytest.mark.parametrize(
    ("archive_format", "compression"),
    [("default", zipfile.ZIP_DEFLATED), ("zip-store", zipfile.ZIP_STORED)],
)
def test_zip_store_does_not_compress(
    content: Path, store: Path, archive_format: ArchiveFormat, compression: int
) -> None:
    with zipfile.ZipFile(write(content, store, archive_format)) as archive:
        assert {member.compress_type for member in archive.infolist()} == {compression}


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_an_archive_that_is_there_is_replaced_whole(
    content: Path, store: Path, archive_format: ArchiveFormat, name: str
) -> None:
    if archive_format == "no-archive":
        (store / name).mkdir()
        (store / name / "old").touch()
    else:
        (store / name).write_text("old")
    archive = write(content, store, archive_format)
    assert list(store.iterdir()) == [archive]
    assert set(members(archive)) == {PACKAGE, MODEL_CONFIG, "tables.bin", MANIFEST}


def test_a_model_may_be_called_what_its_predecessor_becomes(content: Path, store: Path) -> None:
    staged = content.rename(content.with_name("replaced"))
    target = store / "replaced"
    target.mkdir()
    manifest = make_manifest("replaced", "1.0", None)
    write_archive(staged, manifest, Place(stem=target), "no-archive")
    assert set(members(target)) == {PACKAGE, MODEL_CONFIG, "tables.bin", MANIFEST}


def test_a_folder_takes_the_place_of_a_file(content: Path, store: Path) -> None:
    (store / "ranking").write_text("no archive at all")
    assert MANIFEST in members(write(content, store, "no-archive"))


def test_an_archive_that_cannot_be_put_in_place_leaves_the_old_one(
    content: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = store / "ranking.mar"
    target.mkdir()
    (target / "old").touch()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(content, store, "default")
    assert [path.name for path in target.iterdir()] == ["old"]


def test_the_manifest_names_a_requirements_file(content: Path, store: Path) -> None:
    (content / "requirements.txt").write_text("httpx")
    named = make_manifest("ranking", "1.0", "requirements.txt")
    write_archive(content, named, Place(stem=store / "ranking"), "no-archive")
    manifest = json.loads((store / "ranking" / MANIFEST).read_text())
    assert manifest["model"]["requirementsFile"] == "requirements.txt"
