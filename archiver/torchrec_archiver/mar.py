"""Last step of building: the archive file, by torch-model-archiver's own code."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, get_args
from urllib.parse import quote

from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

from torchrec_handler.archive import HANDLER, MODEL_CONFIG, PACKAGE
from torchrec_handler.errors import BuildError

ArchiveFormat = Literal["default", "zip-store", "no-archive", "tgz"]

LARGE_BYTES = 2**30
"""From this size on, writing and extracting a zip costs more than one file is worth."""

STAGING_PREFIX = ".torchrec-archiver-"


def check_target(
    model_name: str, export_path: Path, archive_format: ArchiveFormat, *, force: bool
) -> Path:
    """Where the archive will be, checked before any work is done.

    Raises:
        BuildError: the name or folder is wrong, or an archive is there and `force` is not set.
    """
    try:
        ModelExportUtils.check_model_name_regex_or_exit(model_name)
    except ModelArchiverError as error:
        message = (
            f"model name: received {model_name!r}, expected letters, digits, '_', '-' and '.', "
            "a letter or a digit first"
        )
        raise BuildError(message) from error
    if not export_path.is_dir():
        message = f"export path: {export_path} is not a folder; make it first"
        raise BuildError(message)
    if archive_format not in get_args(ArchiveFormat):
        expected = ", ".join(("auto", *get_args(ArchiveFormat)))
        message = f"archive format: received {archive_format!r}, expected one of {expected}"
        raise BuildError(message)
    target = Path(
        ModelExportUtils.get_archive_export_path(str(export_path), model_name, archive_format)
    )
    if target.exists() and not force:
        message = f"{target} already exists; replace it with --force"
        raise BuildError(message)
    return target


def check_version(version: str) -> None:
    """See that TorchServe's addresses, `/predictions/NAME/VERSION`, can hold a model's version.

    Raises:
        BuildError: they cannot.
    """
    if not version or quote(version, safe=":+") != version:
        message = (
            f"version: received {version!r}, expected text that an address holds as it is, "
            "like '1.0' or '2024-11-24'"
        )
        raise BuildError(message)


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
        with _terminating(), _locked_folder(parent) as folder:
            yield folder
    except OSError as error:
        message = f"{error.filename or parent}: cannot be written: {error.strerror or error}"
        raise BuildError(message) from error


def write_archive(  # noqa: PLR0913  torch-model-archiver's own options
    content: Path,
    target: Path,
    *,
    model_name: str,
    version: str,
    archive_format: ArchiveFormat,
    requirements_file: str | None,
) -> None:
    """Write the staged members as an archive and rename it into the model store.

    Args:
        content: the staged folder; the archive is made beside it.
        target: the archive's final path; one that is there is replaced.
        model_name: TorchServe's name of the model.
        version: TorchServe's version of the model.
        archive_format: as torch-model-archiver names them.
        requirements_file: name of a staged requirements file.
    """
    manifest = ModelExportUtils.generate_manifest_json(
        ModelArchiverConfig(
            model_name=model_name,
            handler=HANDLER,
            version=version,
            serialized_file=PACKAGE,
            requirements_file=requirements_file,
            config_file=MODEL_CONFIG,
        )
    )
    ModelExportUtils.archive(
        str(content.parent), model_name, str(content), manifest, archive_format
    )
    staged = content.parent / target.name
    replaced = content.parent / ".replaced"
    if target.is_dir() or (staged.is_dir() and target.exists()):
        target.rename(replaced)
    try:
        staged.replace(target)
    except BaseException:
        if replaced.exists():
            replaced.rename(target)
        raise


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


@contextmanager
def _locked_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder, locked while this process lives."""
    entrance = os.open(parent, os.O_RDONLY)
    try:
        # One build at a time looks for stale folders and makes its own, so that none removes
        # another's that is not locked yet.
        fcntl.flock(entrance, fcntl.LOCK_EX)
        _remove_stale(parent)
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(entrance)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_stale(parent: Path) -> None:
    """Remove what builds that were killed outright left behind: a lock ends with its process."""
    for folder in parent.glob(f"{STAGING_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:  # another user's, or gone already
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # a build that runs
            continue
        finally:
            os.close(lock)
