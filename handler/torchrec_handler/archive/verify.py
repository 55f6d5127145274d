"""First step of loading: read what the archive says of itself, and check it before using it."""

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from torchrec_handler.archive.format import (
    DENSE,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    MOST_SAID,
    REQUIREMENTS,
    SAMPLES,
    SIGNATURE,
    TABLES,
    Index,
    sha256,
)
from torchrec_handler.archive.read import MOST_BYTES, check_length
from torchrec_handler.archive.trust import check_signature
from torchrec_handler.errors import ArchiveError

logger = logging.getLogger(__name__)

PACKAGE_KEY = "serializedFile"
FILE_KEYS = (PACKAGE_KEY, "configFile", "requirementsFile", "modelFile")
"""What the manifest's `model` names members with."""

AGAIN = "the archive was altered, build or copy it again"
MOST_NAMED = 5
"""Unlisted members in a message."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive's folder, checked."""

    folder: Path
    package: Path
    """What `PredictFactoryPackager.save_predict_factory` wrote."""
    index: Index | None
    """None for an archive made with plain torch-model-archiver."""
    signer: Path | None = None
    """The public key that its signature was checked with; None where no key is trusted."""


def verify(
    folder: Path, *, full: bool = False, alone: bool = False, keys: Sequence[Path] = ()
) -> Archive:
    """Check an extracted archive.

    Every member that the archiver listed is checked against its digest before anything in it is
    imported, unpickled or obeyed, but for two that hold no code. `tables.bin` is only mapped, so
    its size is checked, not its content, and a worker starts without reading it; samples are
    checked by replaying them.

    Args:
        folder: where TorchServe extracted the archive, or a `no-archive` folder.
        full: check these two as well.
        alone: refuse unlisted members beside a requirements.txt too, where TorchServe has not
            installed any yet.
        keys: public keys of whom to trust; none where an archive needs no signature.

    Raises:
        ArchiveError: a member is missing, altered, truncated, unlisted or outside of the folder, or
            the index contradicts itself or is of another format version; with `keys`, none of them
            signed it.
        LoadError: with `keys`, model-signing is not installed.
    """
    named = _named(read_manifest(folder))
    name = named[PACKAGE_KEY]
    package = folder / name
    if not package.is_file():
        message = (
            f"{_said(name)}: the manifest names it as serializedFile, but it is not in {folder}"
        )
        raise ArchiveError(message)
    _member(folder, INDEX, "a link")
    if not (folder / INDEX).is_file():
        # All that only the archiver writes: served as a plain one, its weights would be missed.
        for member in (TABLES, DENSE, SAMPLES):
            if (folder / member).is_file():
                message = (
                    f"{INDEX}: missing from {folder}, which holds {member}; copy the archive again"
                )
                raise ArchiveError(message)
        if keys:
            message = (
                f"{INDEX}: missing from {folder}, so nobody can have signed it, and this server "
                "trusts keys; build the archive with torchrec-archiver, and sign it"
            )
            raise ArchiveError(message)
        return Archive(folder=folder, package=package, index=None)
    content = _read(folder, INDEX)
    signer = _check_signer(folder, content, keys) if keys else None
    index = Index.loads(content.decode("utf-8", errors="replace"))
    for key, member in named.items():
        if member not in index.sha256:
            message = (
                f"{_said(member)}: the manifest names it as {key}, but {INDEX} does not list it; "
                f"{AGAIN}"
            )
            raise ArchiveError(message)
    if index.is_newer:
        logger.warning(
            "%s: written in format %s, read as %s; newer fields are ignored",
            INDEX,
            index.format_version,
            FORMAT_VERSION,
        )
    _check_listed(index)
    _check_members(folder, index, unchecked=() if full else (TABLES, SAMPLES))
    if alone or REQUIREMENTS not in index.sha256:  # beside which TorchServe installs what it lists
        _check_alone(folder, index)
    _check_size(folder, index)
    return Archive(folder=folder, package=package, index=index, signer=signer)


def _check_signer(folder: Path, index: bytes, keys: Sequence[Path]) -> Path:
    if not _member(folder, SIGNATURE, "a link").is_file():
        message = (
            f"{SIGNATURE}: missing from {folder}, and this server trusts keys; sign the archive "
            "with torchrec-archiver sign"
        )
        raise ArchiveError(message)
    return check_signature(index, _read(folder, SIGNATURE), keys)


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest's `model`; the members that it names lie in the folder, or nowhere.

    Raises:
        ArchiveError: it is missing, damaged, too long, or names no package or a member elsewhere.
    """
    try:
        manifest = json.loads(_read(folder, MANIFEST).decode())
    except (OSError, RecursionError, ValueError) as error:
        message = f"{MANIFEST}: cannot be read ({error}); is {folder} a model archive?"
        raise ArchiveError(message) from error
    model = manifest.get("model") if isinstance(manifest, dict) else None
    name = model.get(PACKAGE_KEY) if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(name, str) or not name:
        message = f"{MANIFEST}: names no serializedFile; give the package with --serialized-file"
        raise ArchiveError(message)
    for member in _named(model).values():
        _member(folder, member, f"named by {MANIFEST}")
    return model


def _named(model: Mapping[str, Any]) -> Mapping[str, str]:
    return {key: str(model[key]) for key in FILE_KEYS if model.get(key)}


def _read(folder: Path, name: str) -> bytes:
    """A member that is read as a whole."""
    with _member(folder, name, "a link").open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    check_length(name, content)
    return content


def _member(folder: Path, name: str, what: str) -> Path:
    """The path of a member, which is a file in the folder, links followed, or not there."""
    path = folder / name
    try:
        lies_inside = path.resolve().is_relative_to(folder.resolve())
        is_special = path.exists() and not path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        message = f"{_said(name)}: {what}, is no name of a file ({reason}); {AGAIN}"
        raise ArchiveError(message) from error
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not lies_inside:
        message = f"{_said(name)}: {what}, lies outside of {folder}; {AGAIN}"
        raise ArchiveError(message)
    if is_special:
        message = f"{_said(name)}: is no file, in {folder}; {AGAIN}"
        raise ArchiveError(message)
    return path


def _said(name: str) -> str:
    return name if len(name) <= MOST_SAID else f"{name[:MOST_SAID]}…"


def _check_listed(index: Index) -> None:
    """See that what the index says is there, and what names the handler, is listed."""
    if MANIFEST not in index.sha256:
        message = f"{MANIFEST}: {INDEX} does not list it; build the archive again"
        raise ArchiveError(message)
    expected = {
        TABLES: (f"{len(index.tables)} tables", bool(index.tables)),
        SAMPLES: (f"{index.samples} samples", bool(index.samples)),
    }
    for member, (what, is_expected) in expected.items():
        if is_expected != (member in index.sha256):
            listed = "lists" if member in index.sha256 else "does not list"
            message = f"{member}: {INDEX} {listed} it, but has {what}; {AGAIN}"
            raise ArchiveError(message)
    if index.tables and DENSE not in index.sha256:  # a module that its factory shards has neither
        message = f"{DENSE}: {INDEX} does not list it, but has {len(index.tables)} tables; {AGAIN}"
        raise ArchiveError(message)


def _check_members(folder: Path, index: Index, unchecked: Collection[str]) -> None:
    for member, digest in index.sha256.items():
        path = _member(folder, member, f"listed in {INDEX}")
        if not path.is_file():
            message = f"{_said(member)}: listed in {INDEX}, but missing from {folder}"
            raise ArchiveError(message)
        if member not in unchecked and (found := sha256(path)) != digest:
            message = (
                f"{member}: its sha256 is {found[:16]}…, expected {digest[:16]}…; "
                "the archive was altered or damaged, build or copy it again"
            )
            raise ArchiveError(message)


def _check_alone(folder: Path, index: Index) -> None:
    listed = {INDEX, SIGNATURE, *index.sha256}
    if unlisted := sorted(name for name in _names(folder) if name not in listed):
        more = f" and {len(unlisted) - MOST_NAMED} more" if len(unlisted) > MOST_NAMED else ""
        message = (
            f"{', '.join(unlisted[:MOST_NAMED])}{more}: in {folder}, but not listed in {INDEX}; "
            "remove it, or build or copy the archive again"
        )
        raise ArchiveError(message)


def _names(folder: Path) -> Iterator[str]:
    """The paths of all files in a folder, and of links to other folders."""
    try:
        for root, folders, files in os.walk(folder.resolve()):
            links = [name for name in folders if Path(root, name).is_symlink()]
            for name in (*files, *links):
                yield Path(root, name).relative_to(folder.resolve()).as_posix()
    except RecursionError as error:
        message = f"{folder}: holds folders in folders that are too deep; {AGAIN}"
        raise ArchiveError(message) from error


def _check_size(folder: Path, index: Index) -> None:
    if not index.tables:
        return
    expected = max(table.offset + table.nbytes for table in index.tables)
    received = (folder / TABLES).stat().st_size
    if received != expected:
        what = "the archive is truncated" if received < expected else "tables are not listed"
        message = (
            f"{TABLES}: received {received} bytes, expected {expected} for "
            f"{len(index.tables)} tables; {what}, build or copy it again"
        )
        raise ArchiveError(message)
