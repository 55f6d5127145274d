"""An archive's members as files, out of whatever somebody sent."""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from torchrec_archiver.near import room
from torchrec_handler.archive.read import MOST_MEMBERS
from torchrec_handler.errors import ArchiveError

DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, tarfile.TarError)
"""What reading may raise; an encrypted zip is a RuntimeError."""

Member = tuple[str, int, bool]
"""Name, bytes, and whether it is a file."""


def unpack(archive: Path, folder: Path) -> Path:
    """Write an archive's members below a folder, each as a file of its own.

    Args:
        archive: a .mar or a .tar.gz.
        folder: an empty one.

    Returns:
        Where they are: the folder, or that in it which a .tar.gz has around all of them.

    Raises:
        ArchiveError: it is neither, is damaged, has more members than any archive, one that is no
            file, lies outside of the folder or is there twice, or takes more room than there is.
    """
    is_zip = zipfile.is_zipfile(archive)
    if not is_zip and not tarfile.is_tarfile(archive):
        message = f"archive: {archive} is neither a .mar, a .tar.gz nor a folder"
        raise ArchiveError(message, hint="build it with torchrec-archiver build")
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as members:
                _check(archive, folder, list(_of_zip(members)))
                members.extractall(folder)  # noqa: S202  names are checked
        else:
            with tarfile.open(archive) as tar:
                entries = [entry for _, entry in zip(range(MOST_MEMBERS + 1), tar, strict=False)]
                _check(archive, folder, [_of_tar(entry) for entry in entries if not entry.isdir()])
                tar.extractall(folder, filter="data")
    except ArchiveError:
        raise
    except DAMAGED as error:
        message = f"archive: {archive} cannot be unpacked into {folder.parent}: {error}"
        raise ArchiveError(message, hint=room(folder.parent)) from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _of_zip(members: zipfile.ZipFile) -> Iterator[Member]:
    for entry in members.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not entry.is_dir():
            yield entry.filename, entry.file_size, kind in {0, stat.S_IFREG}


def _of_tar(entry: tarfile.TarInfo) -> Member:
    return entry.name, entry.size, entry.isreg()


def _check(archive: Path, folder: Path, members: Sequence[Member]) -> None:
    if len(members) > MOST_MEMBERS:
        _refuse(archive, f"has more than {MOST_MEMBERS:,} members")
    seen: set[str] = set()
    for name, _, is_file in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            _refuse(archive, f"has a member outside of itself, {name[:200]!r}")
        if not is_file:
            _refuse(archive, f"has a member that is no file, {name[:200]!r}")
        if str(path) in seen:
            _refuse(archive, f"has two members {name[:200]!r}")
        seen.add(str(path))
    needed, free = sum(size for _, size, _ in members), shutil.disk_usage(folder).free
    if needed > free:
        message = (
            f"archive: {archive} takes {needed / 1e9:,.1f} GB unpacked, {folder.parent} has "
            f"{free / 1e9:,.1f} GB"
        )
        raise ArchiveError(message, hint="TMPDIR, or --folder of serve, names another one")


def _refuse(archive: Path, why: str) -> None:
    message = f"archive: {archive} {why}, which no archive of torchrec-archiver has"
    raise ArchiveError(message, hint="build or copy it again")
