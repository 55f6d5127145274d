"""The door of a model store: archives enter it once all of them is checked, and written anew.

None of an archive's code runs here. What is written are the members that were checked, by this
program's own writer, so that it makes no difference how somebody else's reader takes what was sent.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchrec_archiver.mar import staging, write_archive
from torchrec_archiver.near import near_path
from torchrec_archiver.store import ArchiveFormat, check_arguments, find_place
from torchrec_archiver.unpack import told_of, unpack
from torchrec_handler.archive.format import INDEX, MANIFEST, SIGNATURE, TABLES, Index
from torchrec_handler.archive.read import is_gzip
from torchrec_handler.archive.verify import Archive, read_manifest, verify
from torchrec_handler.errors import ArchiveError, BuildError
from torchrec_handler.tables.rows import find_invalid
from torchrec_handler.tables.store import TableStore

BLOCK_BYTES = 2**26
"""Of a table, looked at at once."""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An archive that is in a store."""

    path: Path
    signer: Path | None
    """The public key that its signature was checked with; None where no key is trusted."""


def admit(
    archive: Path,
    store: Path,
    keys: Sequence[Path] = (),
    *,
    allowed: Collection[str] = (),
    force: bool = False,
) -> Admitted:
    """Check all of an archive, and put it into a model store.

    Args:
        archive: a .mar, a .tar.gz or a folder; the store gets it in the same format.
        store: the model store; it never holds half an archive.
        keys: public keys of whom to trust; none where an archive needs no signature.
        allowed: names of tables that may hold rows which are not finite.
        force: whether to replace this version, where it is there.

    Raises:
        ArchiveError: it is not what it says it is, or none of the keys signed it.
        BuildError: it cannot be written, or has no place in the store.
        LoadError: with `keys`, model-signing is not installed.
    """
    if not archive.exists():
        message = f"archive: {archive} does not exist"
        raise ArchiveError(message, hint=near_path(archive))
    if not store.is_dir():
        message = f"--into: {store} is not a folder; make it first"
        raise BuildError(message)
    with staging(store) as scratch:
        sent = scratch / "sent"
        sent.mkdir()
        folder = unpack(archive, sent)
        with told_of(archive, folder):
            checked = check(folder, keys, allowed=allowed, alone=True)
            if checked.index is None:
                message = (
                    f"{INDEX}: missing from {folder}, which plain torch-model-archiver made, so "
                    "nothing of it can be checked; build it with torchrec-archiver"
                )
                raise ArchiveError(message)
            model = read_manifest(folder)
        name, version = str(model.get("modelName", "")), str(model.get("modelVersion", ""))
        check_arguments(name, version, store, "auto")
        archive_format = _format(archive)
        place = find_place(name, version, store, [archive_format], force=force)
        content = scratch / "checked" / name
        content.mkdir(parents=True)
        members = {INDEX, *checked.index.sha256} - {MANIFEST}
        for member in members | ({SIGNATURE} if (folder / SIGNATURE).is_file() else set()):
            (content / member).parent.mkdir(parents=True, exist_ok=True)
            (folder / member).rename(content / member)
        manifest = (folder / MANIFEST).read_bytes().decode()
        path = write_archive(content, manifest, place, archive_format)
    return Admitted(path=path, signer=checked.signer)


def check(
    folder: Path, keys: Sequence[Path], *, allowed: Collection[str] = (), alone: bool = False
) -> Archive:
    """Check all of an archive that can be checked without running any of its code.

    Args:
        folder: of its members.
        keys: public keys of whom to trust; none where an archive needs no signature.
        allowed: names of tables that may hold rows which are not finite.
        alone: see `verify`.

    Raises:
        ArchiveError: see `verify`; or a row is not finite.
        LoadError: see `verify`.
    """
    checked = verify(folder, full=True, alone=alone, keys=keys)
    if checked.index and checked.index.tables:
        _check_rows(folder, checked.index, allowed)
    return checked


def _check_rows(folder: Path, index: Index, allowed: Collection[str]) -> None:
    store = TableStore.map(folder / TABLES, index.tables)
    for entry in index.tables:
        rows = store.rows(entry)
        step = max(1, BLOCK_BYTES // max(1, entry.row_bytes))
        for start in range(0, 0 if entry.name in allowed else entry.rows, step):
            if found := find_invalid(rows[start : start + step], entry.dtype):
                found = replace(found, row=start + found.row)
                message = f"table {entry.name!r}, {entry.dtype}: {found}"
                hint = f"--allow-invalid-rows {entry.name} takes the table as it is"
                raise ArchiveError(message, hint=hint)


def _format(archive: Path) -> ArchiveFormat:
    if archive.is_dir():
        return "no-archive"
    return "tgz" if is_gzip(archive) else "zip-store"
