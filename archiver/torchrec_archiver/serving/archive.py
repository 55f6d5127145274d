"""Archives as folders that a server can load: found, unpacked, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrec_archiver.store import SUFFIXES
from torchrec_archiver.unpack import told_of, unpack
from torchrec_handler.archive.format import MANIFEST, Index
from torchrec_handler.archive.verify import read_manifest, verify
from torchrec_handler.errors import ArchiveError, ServeError

MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Model:
    """One archive, checked."""

    name: str
    version: str
    archive: Path
    """As it was given."""
    folder: Path
    """Where its members lie."""
    index: Index | None
    """None for an archive made with plain torch-model-archiver."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def open_all(archives: Sequence[Path], scratch: Path, keys: Sequence[Path] = ()) -> list[Model]:
    """Check archives, each as its worker will or better, before anything is started.

    TorchServe's workers start with an archive's folder on their `PYTHONPATH`, so what Python
    imports by itself would run before a worker checks anything.

    Args:
        archives: .mar or .tar.gz files, which are unpacked, and folders, which are served in place.
        scratch: where to unpack.
        keys: public keys, of which one has to have signed each; every digest is checked then.

    Raises:
        ArchiveError: one is not there, damaged, of another format version, or none of the keys
            signed it; names the archive.
        LoadError: with `keys`, model-signing is not installed.
        ServeError: two are the same version of a model, or there is no room to unpack one.
    """
    models: dict[tuple[str, str], Model] = {}
    for number, archive in enumerate(archives):
        model = _open(archive, scratch / str(number), keys)
        same = models.setdefault((model.name, model.version), model)
        if same is not model:
            message = f"archive: {same.archive} and {archive} are both {model}; serve one of them"
            raise ServeError(message)
    return list(models.values())


def _open(archive: Path, scratch: Path, keys: Sequence[Path]) -> Model:
    folder = _unpack(archive, scratch)
    try:
        with told_of(archive, folder):
            # In a folder that was served TorchServe has installed what its requirements list.
            alone = not archive.is_dir() or bool(keys)
            index = verify(folder, full=bool(keys), alone=alone, keys=keys).index
            manifest = read_manifest(folder)
        name, version = str(manifest["modelName"]), str(manifest["modelVersion"])
    except KeyError as error:
        message = f"archive: {archive}: {MANIFEST} has no {error}; build the archive again"
        raise ArchiveError(message) from error
    return Model(name=name, version=version, archive=archive, folder=folder, index=index)


def _unpack(archive: Path, scratch: Path) -> Path:
    """The folder of an archive's members."""
    try:
        if archive.is_dir():
            if not (archive / MANIFEST).is_file():
                message = f"archive: {archive} is a folder without {MANIFEST}{_others(archive)}"
                raise ArchiveError(message)
            return archive.resolve()
        if not archive.exists():
            message = f"archive: {archive} does not exist{_others(archive.parent)}"
            raise ArchiveError(message)
        scratch.mkdir(parents=True)
    except OSError as error:
        message = f"archive: {archive} cannot be unpacked: {error.strerror} ({error.filename})"
        raise ServeError(message) from error
    return unpack(archive, scratch)


def _others(folder: Path) -> str:
    """The rest of a sentence: which archives are in a folder."""
    suffixes = tuple(suffix for suffix in SUFFIXES.values() if suffix)
    found = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.endswith(suffixes) or (path / MANIFEST).is_file()
    )
    if not found:
        return "; give the path that torchrec-archiver build printed"
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"; in {folder} there is {', '.join(found[:MOST_NAMED])}{more}"
