"""Signs an archive: a member that the others do not know of, put into the archive as it is."""

import gzip
import io
import shutil
import tarfile
import zipfile
from copy import copy
from pathlib import Path

from torchrec_archiver.mar import staging
from torchrec_handler.archive.format import SIGNATURE
from torchrec_handler.archive.read import read_index_bytes
from torchrec_handler.archive.trust import sign


def sign_archive(archive: Path, private_key: Path, password: str | None = None) -> None:
    """Put a signature over the index into an archive, in place of the one that it has.

    A file is written anew beside the old one and renamed, so that it is whole at every moment.

    Args:
        archive: a .mar, a .tar.gz or a folder that `torchrec-archiver build` made.
        private_key: a PEM file with an elliptic curve's key.
        password: of that file.

    Raises:
        ArchiveError: the archive has no index, or the key cannot be used.
        LoadError: model-signing is not installed.
        BuildError: it cannot be written.
    """
    signature = sign(read_index_bytes(archive), private_key, password)
    with staging(archive.parent) as folder:
        signed = folder / archive.name
        if archive.is_dir():
            (folder / SIGNATURE).write_bytes(signature)
            (folder / SIGNATURE).replace(archive / SIGNATURE)
            return
        if tarfile.is_tarfile(archive):
            _write_tar(archive, signed, signature)
        else:
            _write_zip(archive, signed, signature)
        shutil.copymode(archive, signed)
        signed.replace(archive)


def _write_zip(archive: Path, signed: Path, signature: bytes) -> None:
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(signed, "w") as after:
        for entry in before.infolist():
            if entry.filename != SIGNATURE:
                with before.open(entry) as source, after.open(copy(entry), "w") as target:
                    shutil.copyfileobj(source, target)
        after.writestr(SIGNATURE, signature)


def _write_tar(archive: Path, signed: Path, signature: bytes) -> None:
    with (
        tarfile.open(archive) as before,
        gzip.open(signed, "wb") as file,
        tarfile.open(fileobj=file, mode="w") as after,
    ):
        name = SIGNATURE
        for entry in before:
            folder, _, member = entry.name.partition("/")
            name = f"{folder}/{SIGNATURE}"
            if member != SIGNATURE:
                after.addfile(entry, before.extractfile(entry) if entry.isfile() else None)
        own = tarfile.TarInfo(name)
        own.size = len(signature)
        own.mode = 0o644
        after.addfile(own, io.BytesIO(signature))
