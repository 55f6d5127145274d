"""What no archive of ours holds is not unpacked, in whatever format somebody sent it."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.archives import hostile
from torchrec_archiver.unpack import unpack
from torchrec_handler.errors import ArchiveError

NO_OTHER = "which no archive of torchrec-archiver has"


def mar(*members: str, kind: int = stat.S_IFREG) -> Callable[[Path], Path]:
    """A zip of these members, the last of which is of a kind."""

    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "shop.mar", "w") as archive:
            for name in members:
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (kind if name == members[-1] else stat.S_IFREG) << 16
                archive.writestr(entry, "/etc/passwd")
        return folder / "shop.mar"

    return write


def tgz(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> Callable[[Path], Path]:
    """A .tar.gz of one member, which claims a size."""

    def write(folder: Path) -> Path:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.linkname = kind, size, "/etc/passwd"
        content = entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
        (folder / "shop.tar.gz").write_bytes(gzip.compress(content))
        return folder / "shop.tar.gz"

    return write


def folder_of(put: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder that holds something."""

    def write(folder: Path) -> Path:
        (folder / "shop").mkdir()
        put(folder / "shop" / "model")
        return folder / "shop"

    return write


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "shop.mar")
    return folder / "shop.mar"


def cut(folder: Path) -> Path:
    archive = mar("a", "b")(folder)
    archive.write_bytes(archive.read_bytes()[:-30])
    return archive


def cut_tgz(folder: Path) -> Path:
    with tarfile.open(folder / "shop.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("shop/a")
        entry.size = 100_000
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    archive = folder / "shop.tar.gz"
    archive.write_bytes(archive.read_bytes()[:50_000])
    return archive


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "above": (mar("a", "../b"), f"has a member outside of itself, '../b', {NO_OTHER}"),
    "above, in a tar": (tgz("s/../../b"), "has a member outside of itself, 's/../../b'"),
    "a folder above": (mar("../b/"), f"has a member outside of itself, '../b/', {NO_OTHER}"),
    "elsewhere": (mar("/tmp/b"), f"has a member outside of itself, '/tmp/b', {NO_OTHER}"),  # noqa: S108
    "a link": (mar("a", kind=stat.S_IFLNK), f"has a member that is no file, 'a', {NO_OTHER}"),
    "a pipe": (mar("a", kind=stat.S_IFIFO), f"has a member that is no file, 'a', {NO_OTHER}"),
    "a link, in a tar": (tgz("s/a", tarfile.SYMTYPE), "has a member that is no file, 's/a'"),
    "a hard link": (tgz("s/a", tarfile.LNKTYPE), "has a member that is no file, 's/a'"),
    "a pipe, in a tar": (tgz("s/a", tarfile.FIFOTYPE), "has a member that is no file, 's/a'"),
    "a device": (tgz("s/a", tarfile.CHRTYPE), "has a member that is no file, 's/a'"),
    "a link, in a folder": (
        folder_of(lambda path: path.symlink_to("/etc")),
        "has a member that is no file, 'model'",
    ),
    "a pipe, in a folder": (folder_of(os.mkfifo), "has a member that is no file, 'model'"),
    "twice": (mar("a", "./a"), f"has two members './a', {NO_OTHER}"),
    "a long name": (mar("a" * 5000), f"has a member with a name of 5,000 letters, {NO_OTHER}"),
    "folders in folders": (mar("a/" * 200), "has a member with a name of 400 letters"),
    "a long name, in a tar": (tgz("a" * 5000), "has a member with a name of 5,000 letters"),
    "a name of 2 GB": (
        lambda folder: hostile.long_name(folder / "shop.tar.gz"),
        "cannot be unpacked into PARENT: a name of 2147483648 bytes; ",
    ),
    "a size of 1 EB": (tgz("s/a", size=10**18), "cannot be unpacked into PARENT: "),
    "cut off": (cut, "is neither a .mar, a .tar.gz nor a folder; build it with torchrec-archiver"),
    "cut off, a tar": (cut_tgz, "cannot be unpacked into PARENT: "),
    "too many": (mar(*map(str, range(10_001))), f"has more than 10,000 members, {NO_OTHER}"),
    "too many folders, in a tar": (
        lambda folder: hostile.crowd(folder / "shop.tar.gz"),
        f"has more than 10,000 members, {NO_OTHER}",
    ),
    "a pipe as the archive": (pipe, "is neither a .mar, a .tar.gz nor a folder"),
    "a device as the archive": (
        lambda _: Path("/dev/zero"),
        "is neither a .mar, a .tar.gz nor a folder",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_archive_holds_is_refused(name: str, tmp_path: Path) -> None:
    write, said = HOSTILE[name]
    target = tmp_path / "target"
    target.mkdir()
    archive = write(tmp_path)
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, target)
    assert str(caught.value).startswith(
        f"archive: {archive} {said.replace('PARENT', str(tmp_path))}"
    )
    assert not [path for path in target.rglob("*") if path.is_symlink() or path.name == "b"]
