"""Where in a model store an archive goes, and which archives there make way for it.

TorchServe takes a model's name and version out of its manifest, whatever the file is called. So the
first version of a model is NAME.mar, as torch-model-archiver calls it, and one that joins it is
NAME-VERSION.mar. No two archives of one version are in a store, in whatever formats: TorchServe
would serve either.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

from torchrec_handler.archive.read import read_model
from torchrec_handler.errors import ArchiveError, BuildError

ArchiveFormat = Literal["default", "zip-store", "no-archive", "tgz"]

SUFFIXES: Mapping[ArchiveFormat, str] = {
    "default": ".mar",
    "zip-store": ".mar",
    "no-archive": "",
    "tgz": ".tar.gz",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an archive goes."""

    stem: Path
    """Its path without the suffix of its format."""
    replaced: tuple[Path, ...] = ()
    """Archives of the model that are no longer there once it is."""
    beside: str | None = None
    """What the model's plain name is taken by, where it is."""

    def path(self, archive_format: ArchiveFormat) -> Path:
        """The archive's path in a format."""
        return _with_suffix(self.stem, SUFFIXES[archive_format])


def check_arguments(model_name: str, version: str, export_path: Path, archive_format: str) -> None:
    """See that a model's name and version can be served, and that there is a store.

    Raises:
        BuildError: one of them is wrong.
    """
    try:
        ModelExportUtils.check_model_name_regex_or_exit(model_name)
    except ModelArchiverError as error:
        message = (
            f"model name: received {model_name!r}, expected letters, digits, '_', '-' and '.', "
            "a letter or a digit first"
        )
        raise BuildError(message) from error
    # Its addresses are /predictions/NAME/VERSION, and TorchServe opens no file with '..' in it.
    if not version or quote(version, safe=":+") != version or version == "." or ".." in version:
        message = (
            f"version: received {version!r}, expected text that an address holds as it is, "
            "like '1.0' or '2024-11-24'"
        )
        raise BuildError(message)
    if not export_path.is_dir():
        message = f"export path: {export_path} is not a folder; make it first"
        raise BuildError(message)
    if archive_format not in {"auto", *get_args(ArchiveFormat)}:
        expected = ", ".join(("auto", *get_args(ArchiveFormat)))
        message = f"archive format: received {archive_format!r}, expected one of {expected}"
        raise BuildError(message)


def find_place(
    model_name: str,
    version: str,
    export_path: Path,
    formats: Collection[ArchiveFormat],
    *,
    force: bool,
) -> Place:
    """Find where an archive goes; before any work is done, and again when it is put there.

    Args:
        model_name: TorchServe's name of the model.
        version: TorchServe's version of the model.
        export_path: the model store.
        formats: what the archive's format may become.
        force: whether to replace this version, else, where it is new, what has the plain name.

    Raises:
        BuildError: this version is there and `force` is not set, or the name is something else's.
    """
    plain = _Taken.read(export_path / model_name, model_name, formats)
    versioned = _Taken.read(export_path / f"{model_name}-{version}", model_name, formats)
    same = [path for taken in (plain, versioned) for path in taken.of_version(version)]
    if same and not force:
        message = f"{same[0]} already holds version {version}; replace it with --force"
        raise BuildError(message)
    joins = not same and not force and bool(plain.own) and not plain.others
    is_versioned = joins or (same and same[0] in versioned.own)
    chosen = versioned if is_versioned else plain
    chosen.check(force=force and not joins)
    beside = [f"{path.name} holds version {found}" for path, found in plain.own.items()]
    return Place(
        stem=chosen.stem,
        replaced=tuple(dict.fromkeys((*chosen.own, *same))),
        beside=beside[0] if joins else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """What has a stem's names."""

    stem: Path
    own: Mapping[Path, str]
    """Archives of the model, in whatever format -> version."""
    others: Mapping[Path, str | None]
    """What else is where the archive may go -> the model that it is an archive of."""

    @classmethod
    def read(cls, stem: Path, model_name: str, formats: Collection[ArchiveFormat]) -> "_Taken":
        own: dict[Path, str] = {}
        others: dict[Path, str | None] = {}
        wanted = {SUFFIXES[archive_format] for archive_format in formats}
        for suffix in sorted(set(SUFFIXES.values()), reverse=True):
            path = _with_suffix(stem, suffix)
            if not os.path.lexists(path):
                continue
            held = read_name_and_version(path)
            if held is not None and held[0] == model_name:
                own[path] = held[1]
            elif suffix in wanted:
                others[path] = held and held[0]
        return cls(stem=stem, own=own, others=others)

    def of_version(self, version: str) -> list[Path]:
        return [path for path, found in self.own.items() if found == version]

    def check(self, *, force: bool) -> None:
        """Raises: BuildError: something that does not make way has a name."""
        for path, model in self.others.items():
            if model is not None:
                message = f"{path} holds the model {model!r}; remove it, or choose another name"
                raise BuildError(message)
            if not force:
                message = f"{path} already exists; replace it with --force"
                raise BuildError(message)
        for path, version in self.own.items():
            if not force:
                message = f"{path} holds version {version}, whatever its name says; remove it"
                raise BuildError(message)


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def read_name_and_version(archive: Path) -> tuple[str, str] | None:
    """What an archive's manifest says; None of what is no archive."""
    try:
        model = read_model(archive)
        return str(model["modelName"]), str(model["modelVersion"])
    except (ArchiveError, KeyError):
        return None
