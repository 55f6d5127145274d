"""What an archive in any format says of itself, without unpacking it; standard library only.

Whoever looks at an archive does not trust it yet: no more is read than a good one can need, and
nothing is run.
"""

import gzip
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from torchrec_handler.archive.format import INDEX, MANIFEST, SAMPLES, Index
from torchrec_handler.errors import ArchiveError

MOST_BYTES = 2**26
"""Of an index, a manifest and the head of the samples: an index of 100,000 tables takes half."""
MOST_MEMBERS = 10_000
"""Of an archive in one file; a good one has nine."""

UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    RecursionError,  # of folders that are too deep
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class Call(NamedTuple):
    """A call that `samples.safetensors` holds."""

    qualname: str
    rows: int
    """B"""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an archive says of itself; its digests are not checked."""

    index: Index
    model: Mapping[str, Any]
    """The manifest's `model`: modelName, modelVersion and what it names."""
    sizes: Mapping[str, int]
    """Member -> bytes, unpacked."""
    calls: tuple[Call, ...]
    """That the samples record, in their order."""


@dataclass
class _Found:
    """Members that were looked for, and the sizes of all."""

    read: dict[str, bytes] = field(default_factory=dict)
    """Each as far as one byte behind the most that it may have."""
    sizes: dict[str, int] = field(default_factory=dict)


def read_index(archive: Path) -> Index:
    """Read the index of an archive in any of its formats.

    Args:
        archive: a .mar, a .tar.gz or a folder.

    Raises:
        ArchiveError: there is no archive, plain torch-model-archiver made it, or the index is
            damaged, too long or of another major version.
    """
    return _index(archive, _find(archive, {INDEX}))


def read_index_bytes(archive: Path) -> bytes:
    """The index of an archive in any of its formats, as it stands there.

    Raises:
        ArchiveError: there is no archive, plain torch-model-archiver made it, or the index is too
            long.
    """
    return _index_bytes(archive, _find(archive, {INDEX}))


def read_description(archive: Path) -> Description:
    """Read all that an archive says of itself; of a .tar.gz that takes inflating the whole of it.

    Args:
        archive: a .mar, a .tar.gz or a folder.

    Raises:
        ArchiveError: as `read_index`; or the manifest or the samples' head is damaged.
    """
    found = _find(archive, {INDEX, MANIFEST, SAMPLES})
    index = _index(archive, found)
    return Description(
        index=index,
        model=_model(found.read.get(MANIFEST)),
        sizes=found.sizes,
        calls=_calls(found.read.get(SAMPLES)),
    )


def read_model(archive: Path) -> Mapping[str, Any]:
    """Read the manifest's `model` of an archive in any of its formats; nothing of one without.

    Raises:
        ArchiveError: there is no archive, or the manifest is damaged or too long.
    """
    return _model(_find(archive, {MANIFEST}).read.get(MANIFEST))


def is_gzip(archive: Path) -> bool:
    """Whether a file is a .tar.gz, whatever it is called.

    Raises:
        OSError: it cannot be read.
    """
    with archive.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _index_bytes(archive: Path, found: _Found) -> bytes:
    content = found.read.get(INDEX)
    if content is None:
        raise _describes_nothing(archive, "no such member")
    check_length(INDEX, content)
    return content


def _index(archive: Path, found: _Found) -> Index:
    try:
        text = _index_bytes(archive, found).decode()
    except UnicodeDecodeError as error:
        raise _describes_nothing(archive, str(error)) from error
    return Index.loads(text)


def _describes_nothing(archive: Path, why: str) -> ArchiveError:
    return ArchiveError(
        f"archive: {archive} holds no {INDEX} ({why}); only archives that "
        "torchrec-archiver built describe themselves"
    )


def check_length(member: str, content: bytes) -> None:
    """See that a member that is read as a whole is no longer than any good one.

    Args:
        member: its name.
        content: as far as one byte behind `MOST_BYTES`.

    Raises:
        ArchiveError: it is longer.
    """
    if len(content) > MOST_BYTES:
        message = (
            f"{member}: is longer than {MOST_BYTES:,} bytes, expected less; "
            "the archive was altered, build or copy it again"
        )
        raise ArchiveError(message)


def _model(manifest: bytes | None) -> Mapping[str, Any]:
    """What an archive is called; a model in a folder that was never packed has no manifest yet."""
    if manifest is None:
        return {}
    check_length(MANIFEST, manifest)
    try:
        model = json.loads(manifest)["model"]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        message = f"{MANIFEST}: cannot be read ({error}); build or copy the archive again"
        raise ArchiveError(message) from error
    return model if isinstance(model, dict) else {}


def _calls(samples: bytes | None) -> tuple[Call, ...]:
    """The calls out of the head of a safetensors file: its length in 8 bytes, then JSON."""
    if samples is None:
        return ()
    length = int.from_bytes(samples[:8], "little")
    try:
        head = json.loads(samples[8 : 8 + min(length, MOST_BYTES)])
        calls = json.loads(head["__metadata__"]["samples"])
        return tuple(Call(str(each["qualname"]), int(each["rows"])) for each in calls)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        message = (
            f"{SAMPLES}: its head cannot be read ({error}); "
            "the archive was altered or damaged, build or copy it again"
        )
        raise ArchiveError(message) from error


def _find(archive: Path, names: AbstractSet[str]) -> _Found:
    try:
        if archive.is_dir():
            return _find_in_folder(archive, names)
        if archive.exists() and not archive.is_file():  # opening a pipe would wait for a writer
            raise _describes_nothing(archive, "it is no file")
        read = _find_in_tar if is_gzip(archive) else _find_in_zip
        return read(archive, names)
    except FileNotFoundError as error:
        message = f"archive: {archive} does not exist"
        raise ArchiveError(message) from error
    except UNREADABLE as error:
        raise _describes_nothing(archive, str(error)) from error


def _find_in_folder(archive: Path, names: AbstractSet[str]) -> _Found:
    """A worker that installed requirements beside the members left thousands of files."""
    found = _Found()
    for path in islice(_files(archive), MOST_MEMBERS):
        found.sizes[path.relative_to(archive).as_posix()] = path.stat().st_size
    inside = archive.resolve()
    for name in names:
        path = archive / name
        if path.is_file() and path.resolve().is_relative_to(inside):
            with path.open("rb") as file:
                found.read[name] = file.read(MOST_BYTES + 1)
    return found


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(files) if (path := Path(root, name)).is_file())


def _find_in_zip(archive: Path, names: AbstractSet[str]) -> _Found:
    found = _Found()
    with zipfile.ZipFile(archive) as members:
        entries = members.infolist()
        _check_number(archive, len(entries))
        for entry in entries:
            found.sizes[entry.filename] = entry.file_size
            if entry.filename in names:
                if entry.flag_bits & 1:
                    message = f"{entry.filename} is encrypted"
                    raise zipfile.BadZipFile(message)
                with members.open(entry) as member:
                    found.read[entry.filename] = member.read(MOST_BYTES + 1)
    return found


def _find_in_tar(archive: Path, names: AbstractSet[str]) -> _Found:
    """Members lie below one folder; a search for the index alone ends where it is found."""
    found = _Found()
    with open_tar(archive) as tar:
        for number, entry in enumerate(tar):
            _check_number(archive, number)
            name = "/".join(PurePosixPath(entry.name).parts[1:])
            member: IO[bytes] | None = tar.extractfile(entry) if entry.isfile() else None
            if member is None:
                continue
            found.sizes[name] = entry.size
            if name in names and name not in found.read:
                found.read[name] = member.read(MOST_BYTES + 1)
            if names <= found.read.keys() and SAMPLES not in names:
                break
    return found


def _check_number(archive: Path, number: int) -> None:
    if number > MOST_MEMBERS:
        message = (
            f"archive: {archive} holds more than {MOST_MEMBERS:,} members, expected some nine; "
            "the archive was altered, build or copy it again"
        )
        raise ArchiveError(message)


@contextmanager
def open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """A .tar.gz, of which no name takes more memory than a member may."""
    with _Inflated(archive) as inflated, tarfile.open(fileobj=inflated, mode="r:") as tar:
        yield tar


class _Inflated(gzip.GzipFile):
    """A gzip file that gives no more at once than a member may have.

    tarfile reads a long name at once, which the tar says the length of.
    """

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MOST_BYTES + 1:
            message = f"a name of {size} bytes"
            raise tarfile.ReadError(message)
        return super().read(size)
