"""Where archives go: a model's first version by its name, others beside it, none of them twice."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from torchrec_archiver.store import SUFFIXES, ArchiveFormat, check_arguments, find_place
from torchrec_handler.archive.format import MANIFEST
from torchrec_handler.errors import BuildError

FORMATS: tuple[ArchiveFormat, ...] = get_args(ArchiveFormat)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


def put(path: Path, version: str, model_name: str = "ranking") -> Path:
    """A minimal archive."""
    model = {"modelName": model_name, "modelVersion": version}
    manifest = json.dumps({"model": model})
    if path.suffix == ".mar":
        with zipfile.ZipFile(path, "w") as members:
            members.writestr(MANIFEST, manifest)
        return path
    folder = path.with_name("packed") if path.name.endswith(".tar.gz") else path
    (folder / MANIFEST).parent.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest)
    if folder != path:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(folder, "ranking")
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).parent.rmdir()
        folder.rmdir()
    return path


def place(store: Path, version: str, *formats: ArchiveFormat, force: bool = False) -> str:
    """The name that an archive gets, and those that it replaces."""
    formats = formats or ("zip-store",)
    found = find_place("ranking", version, store, formats, force=force)
    return " ".join(path.name for path in (found.path(formats[0]), *found.replaced))


# What is asked for.


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "../a", ".", "ä"])
def test_a_model_name_that_torchserve_refuses_is_refused(store: Path, name: str) -> None:
    assert error_of(lambda: check_arguments(name, "1.0", store, "default")) == (
        f"model name: received {name!r}, expected letters, digits, '_', '-' and '.', "
        "a letter or a digit first"
    )


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_model_store_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    assert error_of(lambda: check_arguments("ranking", "1.0", path, "default")) == (
        f"export path: {path} is not a folder; make it first"
    )


def test_an_unknown_format_is_named(store: Path) -> None:
    assert error_of(lambda: check_arguments("ranking", "1.0", store, "zip")) == (
        "archive format: received 'zip', expected one of auto, default, zip-store, no-archive, tgz"
    )


@pytest.mark.parametrize("version", ["1.0", "7", "2024-11-24T10:00", "1.0+cpu", "1.0_rc1~2"])
def test_a_version_that_an_address_can_hold_is_taken(store: Path, version: str) -> None:
    check_arguments("ranking", version, store, "auto")


@pytest.mark.parametrize(
    "version", ["", "1 0", "1/0", "1?a", "1#a", "1%20", "ä", ".", "..", "1..0"]
)
def test_a_version_that_no_address_can_hold_is_refused(store: Path, version: str) -> None:
    assert error_of(lambda: check_arguments("ranking", version, store, "auto")) == (
        f"version: received {version!r}, expected text that an address holds as it is, "
        "like '1.0' or '2024-11-24'"
    )


# Where it goes.


@pytest.mark.parametrize(
    ("archive_format", "name"),
    [
        ("default", "ranking.mar"),
        ("zip-store", "ranking.mar"),
        ("no-archive", "ranking"),
        ("tgz", "ranking.tar.gz"),
    ],
)
def test_an_archive_is_named_as_torchserve_wants_it(
    store: Path, archive_format: ArchiveFormat, name: str
) -> None:
    assert place(store, "1.0", archive_format) == name


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("other", sorted(set(SUFFIXES.values())))
def test_another_version_joins(store: Path, archive_format: ArchiveFormat, other: str) -> None:
    """In whatever format either is."""
    put(store / f"ranking{other}", "1.0")
    found = find_place("ranking", "2.0", store, (archive_format,), force=False)
    assert found.path(archive_format) == store / f"ranking-2.0{SUFFIXES[archive_format]}"
    assert (found.replaced, found.beside) == ((), f"ranking{other} holds version 1.0")


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("name", ["ranking", "ranking-2.0"])
@pytest.mark.parametrize("other", sorted(set(SUFFIXES.values())))
def test_the_same_version_is_replaced_only_by_force(
    store: Path, archive_format: ArchiveFormat, name: str, other: str
) -> None:
    """Where it is, and in whatever format either is; other versions stay."""
    there = put(store / f"{name}{other}", "2.0")
    if name != "ranking":
        put(store / "ranking.mar", "1.0")
    assert error_of(lambda: place(store, "2.0", archive_format)) == (
        f"{there} already holds version 2.0; replace it with --force"
    )
    assert place(store, "2.0", archive_format, force=True) == (
        f"{name}{SUFFIXES[archive_format]} {there.name}"
    )


def test_by_force_a_new_version_takes_the_plain_name(store: Path) -> None:
    put(store / "ranking", "1.0")
    put(store / "ranking-2.0.mar", "2.0")
    assert place(store, "3.0", force=True) == "ranking.mar ranking"


def test_by_force_no_version_is_left_twice(store: Path) -> None:
    """As a build of an earlier release may have left them."""
    for name in ("ranking.mar", "ranking", "ranking-2.0.mar"):
        put(store / name, "2.0")
    assert place(store, "2.0", force=True) == "ranking.mar ranking.mar ranking ranking-2.0.mar"


def test_what_is_no_archive_is_replaced_only_by_force_and_only_in_the_way(store: Path) -> None:
    (store / "ranking.mar").write_text("old")
    (store / "ranking").mkdir()
    assert error_of(lambda: place(store, "1.0")) == (
        f"{store / 'ranking.mar'} already exists; replace it with --force"
    )
    assert place(store, "1.0", force=True) == "ranking.mar"
    assert place(store, "1.0", "tgz") == "ranking.tar.gz"
    assert error_of(lambda: place(store, "1.0", "tgz", "no-archive")) == (
        f"{store / 'ranking'} already exists; replace it with --force"
    )


@pytest.mark.parametrize("force", [False, True])
def test_another_model_s_archive_is_not_replaced(store: Path, *, force: bool) -> None:
    """One version's name may be another model's."""
    other = put(store / "ranking-2.0.mar", "1.0", "ranking-2.0")
    assert place(store, "2.0", force=force) == "ranking.mar"
    put(store / "ranking.mar", "1.0")
    if not force:
        assert error_of(lambda: place(store, "2.0")) == (
            f"{other} holds the model 'ranking-2.0'; remove it, or choose another name"
        )
    put(store / "ranking.mar", "1.0", "shop")
    assert error_of(lambda: place(store, "2.0", force=force)) == (
        f"{store / 'ranking.mar'} holds the model 'shop'; remove it, or choose another name"
    )


def test_a_file_that_was_renamed_is_not_lost(store: Path) -> None:
    put(store / "ranking.mar", "1.0")
    renamed = put(store / "ranking-2.0.mar", "1.5")
    assert error_of(lambda: place(store, "2.0")) == (
        f"{renamed} holds version 1.5, whatever its name says; remove it"
    )
