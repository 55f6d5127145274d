"""Last step of building: the archive file, by torch-model-archiver's own code."""

import errno
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging_utils import ModelExportUtils

from torchrec_archiver.locked import locked_folder
from torchrec_archiver.near import room
from torchrec_archiver.store import SUFFIXES, ArchiveFormat, Place
from torchrec_handler.archive.format import HANDLER, MODEL_CONFIG, PACKAGE
from torchrec_handler.errors import BuildError

LARGE_BYTES = 2**30
"""From this size on, writing and extracting a zip costs more than one file is worth."""

STAGING_PREFIX = ".torchrec-archiver-"


def choose_format(content: Path) -> tuple[ArchiveFormat, str]:
    """What suits the size of a staged archive.

    Quantized tables hardly deflate, so neither choice tries.

    Returns:
        The format, and why.
    """
    size = sum(path.stat().st_size for path in content.iterdir())
    if size < LARGE_BYTES:
        return "zip-store", f"{size / 1e6:,.1f} MB are small enough for one file"
    return "no-archive", f"TorchServe serves these {size / 1e9:,.1f} GB in place, uncopied"


@contextmanager
def staging(export_path: Path) -> Iterator[Path]:
    """A folder outside the model store, on its file system, gone again whatever happens.

    A model store must never hold half an archive, not even after a kill, so the work is done
    elsewhere and renamed into it. Where there is no other folder on its file system, as for a
    mounted volume, it is a hidden one in the model store, which TorchServe passes over. What a
    build that was killed outright left is removed by the next one.

    Raises:
        BuildError: something could not be written.
    """
    store = export_path.resolve()
    outside = [Path(tempfile.gettempdir()).resolve(), store.parent]
    parent = next(
        (
            path
            for path in outside
            if not path.is_relative_to(store)
            and path.stat().st_dev == store.stat().st_dev
            and os.access(path, os.W_OK | os.X_OK)
        ),
        store,
    )
    try:
        with _terminating(), locked_folder(parent, STAGING_PREFIX) as folder:
            yield folder
    except OSError as error:
        message = f"{error.filename or parent}: cannot be written: {error.strerror or error}"
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise BuildError(message, hint=room(parent) if is_full else None) from error


def make_manifest(model_name: str, version: str, requirements_file: str | None) -> str:
    """TorchServe's manifest, by torch-model-archiver's own code.

    Args:
        model_name: TorchServe's name of the model.
        version: TorchServe's version of the model.
        requirements_file: name of a staged requirements file.
    """
    manifest: str = ModelExportUtils.generate_manifest_json(
        ModelArchiverConfig(
            model_name=model_name,
            handler=HANDLER,
            version=version,
            serialized_file=PACKAGE,
            requirements_file=requirements_file,
            config_file=MODEL_CONFIG,
        )
    )
    return manifest


def write_archive(
    content: Path, manifest: str, place: Place, archive_format: ArchiveFormat
) -> Path:
    """Write the staged members as an archive and rename it into the model store.

    Args:
        content: the staged folder, called as the model; the archive is made beside it.
        manifest: from `make_manifest`.
        place: where it goes; what it replaces is there until it is.
        archive_format: as torch-model-archiver names them.

    Returns:
        The archive's path.
    """
    ModelExportUtils.archive(
        str(content.parent), content.name, str(content), manifest, archive_format
    )
    target = place.path(archive_format)
    staged = content.parent / f"{content.name}{SUFFIXES[archive_format]}"
    replaced = content.parent / ".replaced"
    if target.is_dir() or (staged.is_dir() and target.exists()):
        target.rename(replaced)
    try:
        staged.replace(target)
    except BaseException:
        if replaced.exists():
            replaced.rename(target)
        raise
    for number, path in enumerate(place.replaced):
        if path != target:
            path.rename(content.parent / f".replaced-{number}")
    return target


@contextmanager
def _terminating() -> Iterator[None]:
    """Let a SIGTERM unwind like Ctrl-C does, so that the staging folder is removed."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the application decides about signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
