"""An archive's members as files, out of whatever somebody sent."""

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torchrec_archiver.near import room
from torchrec_handler.archive.read import MOST_MEMBERS, is_gzip, open_tar
from torchrec_handler.errors import ArchiveError

DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, tarfile.TarError)
"""What reading may raise; an encrypted zip is a RuntimeError."""

LONGEST_NAME = 255
"""Letters of a member's path; a good archive's have some twenty."""


class Member(NamedTuple):
    """What an archive holds."""

    name: str
    size: int
    kind: int
    """As `stat.S_IFMT` gives it."""


def unpack(archive: Path, folder: Path) -> Path:
    """Write an archive's members below a folder, each as a file of its own.

    Args:
        archive: a .mar, a .tar.gz or a folder, which is copied.
        folder: an empty one.

    Returns:
        Where they are: the folder, or that in it which a .tar.gz has around all of them.

    Raises:
        ArchiveError: it is none of these, is damaged, has more members than any archive, one that
            is no file, lies outside of the folder, has an endless name or is there twice, or takes
            more room than there is.
    """
    try:
        _unpack(archive, folder)
    except ArchiveError:
        raise
    except DAMAGED as error:
        message = f"archive: {archive} cannot be unpacked into {folder.parent}: {error}"
        raise ArchiveError(message, hint=room(folder.parent)) from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


@contextmanager
def told_of(archive: Path, folder: Path) -> Iterator[None]:
    """Let what is wrong with an archive's folder be told of the archive."""
    try:
        yield
    except ArchiveError as error:
        message = f"archive: {archive}: {error.sentence.replace(str(folder), 'it')}"
        raise ArchiveError(message, hint=error.hint) from error


def _unpack(archive: Path, folder: Path) -> None:
    if archive.is_dir():
        _check(archive, folder, list(islice(_of_folder(archive, ""), MOST_MEMBERS + 1)))
        shutil.copytree(archive, folder, symlinks=True, dirs_exist_ok=True)
    elif archive.is_file() and is_gzip(archive):
        with open_tar(archive) as tar:
            _check(archive, folder, [_of_tar(entry) for entry in islice(tar, MOST_MEMBERS + 1)])
            tar.extractall(folder, filter="data")
    elif archive.is_file() and zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as members:
            _check(archive, folder, list(_of_zip(members)))
            members.extractall(folder)  # noqa: S202  names are checked
    else:
        message = f"archive: {archive} is neither a .mar, a .tar.gz nor a folder"
        raise ArchiveError(message, hint="build it with torchrec-archiver build")


def _of_folder(folder: Path, prefix: str) -> Iterator[Member]:
    for entry in os.scandir(folder):
        found = entry.stat(follow_symlinks=False)
        name = f"{prefix}{entry.name}"
        yield Member(name, found.st_size, stat.S_IFMT(found.st_mode))
        if entry.is_dir(follow_symlinks=False) and len(name) <= LONGEST_NAME:
            yield from _of_folder(Path(entry.path), f"{name}/")


def _of_zip(members: zipfile.ZipFile) -> Iterator[Member]:
    for entry in members.infolist():
        kind = stat.S_IFDIR if entry.is_dir() else stat.S_IFMT(entry.external_attr >> 16)
        yield Member(entry.filename, entry.file_size, kind or stat.S_IFREG)


def _of_tar(entry: tarfile.TarInfo) -> Member:
    kind = stat.S_IFDIR if entry.isdir() else stat.S_IFREG if entry.isreg() else stat.S_IFLNK
    return Member(entry.name, entry.size, kind)


def _check(archive: Path, folder: Path, members: Sequence[Member]) -> None:
    if len(members) > MOST_MEMBERS:
        _refuse(archive, f"has more than {MOST_MEMBERS:,} members")
    seen: set[str] = set()
    for name, _, kind in members:
        path = PurePosixPath(name)
        if len(name) > LONGEST_NAME:
            _refuse(archive, f"has a member with a name of {len(name):,} letters")
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            _refuse(archive, f"has a member outside of itself, {name!r}")
        if kind not in {stat.S_IFREG, stat.S_IFDIR}:
            _refuse(archive, f"has a member that is no file, {name!r}")
        if str(path) in seen and kind == stat.S_IFREG:
            _refuse(archive, f"has two members {name!r}")
        seen.add(str(path))
    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        message = (
            f"archive: {archive} takes {needed / 1e9:,.1f} GB unpacked, {folder.parent} has "
            f"{free / 1e9:,.1f} GB"
        )
        raise ArchiveError(message, hint="TMPDIR, or --folder of serve, names another one")


def _refuse(archive: Path, why: str) -> None:
    message = f"archive: {archive} {why}, which no archive of torchrec-archiver has"
    raise ArchiveError(message, hint="build or copy it again")
