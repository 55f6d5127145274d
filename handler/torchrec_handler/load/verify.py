"""First step of loading: read what the archive says of itself, and check it before using it."""

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torchrec_handler.archive import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    SAMPLES,
    TABLES,
    Index,
    sha256,
)
from torchrec_handler.errors import ArchiveError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive's folder, checked."""

    folder: Path
    package: Path
    """What `PredictFactoryPackager.save_predict_factory` wrote."""
    index: Index | None
    """None for an archive made with plain torch-model-archiver."""


def verify(folder: Path, *, full: bool = False) -> Archive:
    """Check an extracted archive.

    Every member that the archiver listed is checked against its digest before anything in it is
    imported, unpickled or obeyed, but for two that hold no code. `tables.bin` is only mapped, so
    its size is checked, not its content, and a worker starts without reading it; samples are
    checked by replaying them.

    Args:
        folder: where TorchServe extracted the archive, or a `no-archive` folder.
        full: check these two as well.

    Raises:
        ArchiveError: a member is missing, altered or truncated, or of another format version.
    """
    name = _package_name(folder)
    package = folder / name
    if not package.is_file():
        message = f"{name}: the manifest names it as serializedFile, but it is not in {folder}"
        raise ArchiveError(message)
    if not (folder / INDEX).is_file():
        if (folder / TABLES).is_file():
            message = (
                f"{INDEX}: missing from {folder}, which holds {TABLES}; copy the archive again"
            )
            raise ArchiveError(message)
        return Archive(folder=folder, package=package, index=None)
    index = Index.loads((folder / INDEX).read_text(encoding="utf-8", errors="replace"))
    if name not in index.sha256:
        message = (
            f"{name}: the manifest names it as serializedFile, but {INDEX} does not list it; "
            "the archive was altered, build or copy it again"
        )
        raise ArchiveError(message)
    if index.is_newer:
        logger.warning(
            "%s: written in format %s, read as %s; newer fields are ignored",
            INDEX,
            index.format_version,
            FORMAT_VERSION,
        )
    _check_members(folder, index, unchecked=() if full else (TABLES, SAMPLES))
    return Archive(folder=folder, package=package, index=index)


def _package_name(folder: Path) -> str:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{MANIFEST}: cannot be read ({error}); is {folder} a model archive?"
        raise ArchiveError(message) from error
    model = manifest.get("model") if isinstance(manifest, dict) else None
    name = model.get("serializedFile") if isinstance(model, dict) else None
    if not isinstance(name, str) or not name:
        message = f"{MANIFEST}: names no serializedFile; give the package with --serialized-file"
        raise ArchiveError(message)
    return name


def _check_members(folder: Path, index: Index, unchecked: Collection[str]) -> None:
    for member, digest in index.sha256.items():
        path = folder / member
        if not path.is_file():
            message = f"{member}: listed in {INDEX}, but missing from {folder}"
            raise ArchiveError(message)
        if member not in unchecked and (found := sha256(path)) != digest:
            message = (
                f"{member}: its sha256 is {found[:16]}…, expected {digest[:16]}…; "
                "the archive was altered or damaged, build or copy it again"
            )
            raise ArchiveError(message)
    if index.tables:
        expected = max(table.offset + table.nbytes for table in index.tables)
        received = (folder / TABLES).stat().st_size if (folder / TABLES).is_file() else 0
        if received < expected:
            message = (
                f"{TABLES}: received {received} bytes, expected {expected} for "
                f"{len(index.tables)} tables; the archive is truncated, build or copy it again"
            )
            raise ArchiveError(message)
