"""The index out of an archive in any format, without unpacking it; standard library only."""

import tarfile
import zipfile
from pathlib import Path
from typing import IO

from torchrec_handler.archive.format import INDEX, Index
from torchrec_handler.errors import ArchiveError


def read_index(archive: Path) -> Index:
    """Read the index of an archive in any of its formats.

    Args:
        archive: a .mar, a .tar.gz or a folder.

    Raises:
        ArchiveError: there is no archive, plain torch-model-archiver made it, or the index is
            damaged or of another major version.
    """
    return Index.loads(read_index_bytes(archive).decode("utf-8", errors="replace"))


def read_index_bytes(archive: Path) -> bytes:
    """The index of an archive in any of its formats, as it stands there.

    Raises:
        ArchiveError: there is no archive, or plain torch-model-archiver made it.
    """
    try:
        return _read(archive)
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        if not archive.exists():
            message = f"archive: {archive} does not exist"
        else:
            message = (
                f"archive: {archive} holds no {INDEX} ({error}); only archives that "
                "torchrec-archiver built describe themselves"
            )
        raise ArchiveError(message) from error


def _read(archive: Path) -> bytes:
    if archive.is_dir():
        return (archive / INDEX).read_bytes()
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            member: IO[bytes] | None = None
            for entry in tar:
                if Path(entry.name).name == INDEX and len(Path(entry.name).parts) == 2:
                    member = tar.extractfile(entry)
                    break
            if member is None:
                raise KeyError(INDEX)
            return member.read()
    with zipfile.ZipFile(archive) as file:
        return file.read(INDEX)
