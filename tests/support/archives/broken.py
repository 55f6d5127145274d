"""Every way to break an archive's folder: each breaks it and says what must be said of it."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrec_handler.archive.format import (
    DENSE,
    INDEX,
    MANIFEST,
    MODEL_CONFIG,
    PACKAGE,
    REQUIREMENTS,
    SAMPLES,
    TABLES,
    sha256,
)

Break = Callable[[Path], str]
"""Takes the folder of a good archive; returns the whole message of the ArchiveError."""


def _missing(member: str) -> Break:
    def apply(folder: Path) -> str:
        (folder / member).unlink()
        return f"{member}: listed in archive.json, but missing from {folder}"

    return apply


def _flipped(member: str) -> Break:
    def apply(folder: Path) -> str:
        path = folder / member
        before = sha256(path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return (
            f"{member}: its sha256 is {sha256(path)[:16]}…, expected {before[:16]}…; "
            "the archive was altered or damaged, build or copy it again"
        )

    return apply


def _no_package(folder: Path) -> str:
    (folder / PACKAGE).unlink()
    return f"{PACKAGE}: the manifest names it as serializedFile, but it is not in {folder}"


def _another_package(folder: Path) -> str:
    (folder / "other.pt").write_bytes((folder / PACKAGE).read_bytes())
    _edit(folder / MANIFEST, lambda manifest: manifest["model"].update(serializedFile="other.pt"))
    return (
        "other.pt: the manifest names it as serializedFile, but archive.json does not list it; "
        "the archive was altered, build or copy it again"
    )


def _truncated_tables(folder: Path) -> str:
    path = folder / TABLES
    expected = path.stat().st_size
    path.write_bytes(path.read_bytes()[: expected // 2])
    return (
        f"tables.bin: received {expected // 2} bytes, expected {expected} for 5 tables; "
        "the archive is truncated, build or copy it again"
    )


def _no_index(folder: Path) -> str:
    (folder / INDEX).unlink()
    return f"archive.json: missing from {folder}, which holds tables.bin; copy the archive again"


def _nothing_but_dense_weights(folder: Path) -> str:
    """Served as a plain archive, it would have the factory's own, untrained tables."""
    for member in (INDEX, TABLES):
        (folder / member).unlink()
    return f"archive.json: missing from {folder}, which holds {DENSE}; copy the archive again"


def _forgotten(member: str, has: str) -> Break:
    """Gone, and its entry in the index too."""

    def apply(folder: Path) -> str:
        (folder / member).unlink()
        _edit(folder / INDEX, lambda index: index["sha256"].pop(member))
        return (
            f"{member}: archive.json does not list it, but has {has}; "
            "the archive was altered, build or copy it again"
        )

    return apply


def _without_tables(folder: Path) -> str:
    _edit(folder / INDEX, lambda index: index["tables"].clear())
    return (
        "tables.bin: archive.json lists it, but has 0 tables; "
        "the archive was altered, build or copy it again"
    )


def _without_the_last_table(folder: Path) -> str:
    gone = []
    _edit(folder / INDEX, lambda index: gone.append(index["tables"].pop()))
    received = (folder / TABLES).stat().st_size
    last = json.loads((folder / INDEX).read_text())["tables"][-1]
    expected = last["offset"] + last["rows"] * last["row_bytes"]
    return (
        f"tables.bin: received {received} bytes, expected {expected} for 4 tables; "
        "tables are not listed, build or copy it again"
    )


def _beyond_the_file(folder: Path) -> str:
    def grow(index: dict[str, Any]) -> None:
        index["tables"][-1]["rows"] = 1000

    _edit(folder / INDEX, grow)
    received = (folder / TABLES).stat().st_size
    last = json.loads((folder / INDEX).read_text())["tables"][-1]
    expected = last["offset"] + 1000 * last["row_bytes"]
    return (
        f"tables.bin: received {received} bytes, expected {expected} for 5 tables; "
        "the archive is truncated, build or copy it again"
    )


def _named_outside(name: str) -> Break:
    """A member that is there, outside of the folder, with the right digest."""

    def apply(folder: Path) -> str:
        outside = folder / name  # an absolute name takes the folder's place
        outside.write_text("not ours")
        digest = sha256(outside)
        _edit(folder / INDEX, lambda index: index["sha256"].update({name: digest}))
        return (
            f"{name}: listed in archive.json, lies outside of {folder}; "
            "the archive was altered, build or copy it again"
        )

    return apply


def _named_elsewhere(folder: Path) -> str:
    return _named_outside(str(folder.parent / "other"))(folder)


def _link(member: str, said: str) -> Break:
    """A member that is a link to the same content elsewhere."""

    def apply(folder: Path) -> str:
        elsewhere = folder.parent / "elsewhere"
        elsewhere.write_bytes((folder / member).read_bytes())
        (folder / member).unlink()
        (folder / member).symlink_to(elsewhere)
        return (
            f"{member}: {said}, lies outside of {folder}; "
            "the archive was altered, build or copy it again"
        )

    return apply


def _pipe(member: str) -> Break:
    """To open it would be to wait for ever."""

    def apply(folder: Path) -> str:
        (folder / member).unlink()
        os.mkfifo(folder / member)
        return f"{member}: is no file, in {folder}; the archive was altered, build or copy it again"

    return apply


def _circle(folder: Path) -> str:
    (folder / DENSE).unlink()
    (folder / DENSE).symlink_to(folder / DENSE)
    return (
        f"{DENSE}: listed in archive.json, is no name of a file (Symlink loop from "
        f"'{folder / DENSE}'); the archive was altered, build or copy it again"
    )


def _named(name: str, why: str) -> Break:
    """A member whose name no file can have."""

    def apply(folder: Path) -> str:
        _edit(folder / INDEX, lambda index: index["sha256"].update({name: "0" * 64}))
        shown = name if len(name) <= 200 else f"{name[:200]}…"
        return (
            f"{shown}: listed in archive.json, is no name of a file ({why}); "
            "the archive was altered, build or copy it again"
        )

    return apply


def _too_long(member: str) -> Break:
    def apply(folder: Path) -> str:
        os.truncate(folder / member, 2**26 + 1)
        return (
            f"{member}: is longer than 67,108,864 bytes, expected less; "
            "the archive was altered, build or copy it again"
        )

    return apply


def _deep_index(folder: Path) -> str:
    (folder / INDEX).write_text("[" * 100_000)
    return (
        "archive.json: is not JSON (maximum recursion depth exceeded while decoding a JSON array "
        "from a unicode string); build the archive again"
    )


def _deep_manifest(folder: Path) -> str:
    (folder / MANIFEST).write_text('{"model":' * 100_000)
    return (
        "MAR-INF/MANIFEST.json: cannot be read (maximum recursion depth exceeded while decoding a "
        f"JSON object from a unicode string); is {folder} a model archive?"
    )


def _of_another_archive(folder: Path) -> str:
    """Of the same size, and each row as it can be."""
    path = folder / TABLES
    before = sha256(path)
    content = path.read_bytes()
    row = json.loads((folder / INDEX).read_text())["tables"][0]["row_bytes"]
    path.write_bytes(content[row : 2 * row] + content[:row] + content[2 * row :])
    return (
        f"{TABLES}: its sha256 is {sha256(path)[:16]}…, expected {before[:16]}…; "
        "the archive was altered or damaged, build or copy it again"
    )


def write_again(folder: Path, member: str, content: bytes) -> None:
    """Put other content into a member, and its right digest into the index."""
    (folder / member).write_bytes(content)
    digest = sha256(folder / member)
    _edit(folder / INDEX, lambda index: index["sha256"].update({member: digest}))


def _manifest_names(key: str, name: str, message: str) -> Break:
    def apply(folder: Path) -> str:
        (folder.parent / "other").touch()
        _edit(folder / MANIFEST, lambda manifest: manifest["model"].update({key: name}))
        return message.replace("FOLDER", str(folder))

    return apply


def _index_is_not_json(folder: Path) -> str:
    (folder / INDEX).write_bytes(b'{"format_version": \xff')
    return (
        "archive.json: is not JSON (Expecting value: line 1 column 20 (char 19)); "
        "build the archive again"
    )


def _other_major(folder: Path) -> str:
    _edit(folder / INDEX, lambda index: index.update(format_version="2.0"))
    return (
        "archive.json: received format version 2.0, expected 1.1; "
        "build the archive again with this version of torchrec-serve"
    )


def _no_manifest(folder: Path) -> str:
    (folder / MANIFEST).unlink()
    return (
        "MAR-INF/MANIFEST.json: cannot be read ([Errno 2] No such file or directory: "
        f"'{folder / MANIFEST}'); is {folder} a model archive?"
    )


def _manifest_is_not_json(folder: Path) -> str:
    (folder / MANIFEST).write_text("{")
    return (
        "MAR-INF/MANIFEST.json: cannot be read (Expecting property name enclosed in double quotes: "
        f"line 1 column 2 (char 1)); is {folder} a model archive?"
    )


def _manifest_without(change: Callable[[dict[str, Any]], object]) -> Break:
    def apply(folder: Path) -> str:
        _edit(folder / MANIFEST, change)
        return (
            "MAR-INF/MANIFEST.json: names no serializedFile; give the package with "
            "--serialized-file"
        )

    return apply


def _another_handler(folder: Path) -> str:
    """Code that nobody listed would run before any of ours."""
    before = sha256(folder / MANIFEST)
    _edit(folder / MANIFEST, lambda manifest: manifest["model"].update(handler="base64"))
    return (
        f"{MANIFEST}: its sha256 is {sha256(folder / MANIFEST)[:16]}…, expected {before[:16]}…; "
        "the archive was altered or damaged, build or copy it again"
    )


def _index_of_no_manifest(folder: Path) -> str:
    _edit(folder / INDEX, lambda index: index["sha256"].pop(MANIFEST))
    return f"{MANIFEST}: archive.json does not list it; build the archive again"


def _manifest_is_a_list(folder: Path) -> str:
    (folder / MANIFEST).write_text("[]")
    return "MAR-INF/MANIFEST.json: names no serializedFile; give the package with --serialized-file"


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


BROKEN: dict[str, Break] = {
    "no manifest": _no_manifest,
    "manifest is not JSON": _manifest_is_not_json,
    "manifest is a list": _manifest_is_a_list,
    "manifest without model": _manifest_without(lambda manifest: manifest.pop("model")),
    "manifest without package": _manifest_without(
        lambda manifest: manifest["model"].pop("serializedFile")
    ),
    "manifest of another handler": _another_handler,
    "no package": _no_package,
    "another package": _another_package,
    "no index": _no_index,
    "index is not JSON": _index_is_not_json,
    "index of another major version": _other_major,
    "tables cut off": _truncated_tables,
    "no tables in the index": _without_tables,
    "a table gone from the index": _without_the_last_table,
    "a table beyond the file": _beyond_the_file,
    "an index of no tables.bin": _forgotten(TABLES, "5 tables"),
    "an index of no dense weights": _forgotten(DENSE, "5 tables"),
    "an index of no samples": _forgotten(SAMPLES, "4 samples"),
    "an index of no manifest": _index_of_no_manifest,
    "no index, no tables": _nothing_but_dense_weights,
    "a member above": _named_outside("../other"),
    "a member above by way of a folder": _named_outside("MAR-INF/../../other"),
    "a member elsewhere": _named_elsewhere,
    "a member that is a link": _link(DENSE, "listed in archive.json"),
    "an index that is a link": _link(INDEX, "a link"),
    "a manifest that is a link": _link(MANIFEST, "a link"),
    **{f"a pipe as {member}": _pipe(member) for member in (INDEX, MANIFEST, DENSE, TABLES)},
    "links in a circle": _circle,
    "a name of 5,000 letters": _named("a" * 5000, "File name too long"),
    "a name with a NUL": _named("a\0b", "embedded null byte"),
    "an index of 64 MB": _too_long(INDEX),
    "a manifest of 64 MB": _too_long(MANIFEST),
    "an index of 100,000 lists": _deep_index,
    "a manifest of 100,000 objects": _deep_manifest,
    "a package above": _manifest_names(
        "serializedFile",
        "../other",
        (
            "../other: named by MAR-INF/MANIFEST.json, lies outside of FOLDER; "
            "the archive was altered, build or copy it again"
        ),
    ),
    "other requirements": _manifest_names(
        "requirementsFile",
        "other.txt",
        (
            "other.txt: the manifest names it as requirementsFile, but archive.json does not list "
            "it; the archive was altered, build or copy it again"
        ),
    ),
    **{
        f"no {re.sub(r'[.].*', '', member)}": _missing(member)
        for member in (MODEL_CONFIG, DENSE, TABLES, REQUIREMENTS, SAMPLES)
    },
    **{
        f"a byte of {re.sub(r'[.].*', '', member)} flipped": _flipped(member)
        for member in (PACKAGE, MODEL_CONFIG, DENSE, REQUIREMENTS)
    },
}
"""What is broken -> how. The good archive has every member that there can be."""

BROKEN_WHERE_NO_CODE_IS: dict[str, Break] = {
    "another archive's tables": _of_another_archive,
    **{
        f"a byte of {re.sub(r'[.].*', '', member)} flipped": _flipped(member)
        for member in (TABLES, SAMPLES)
    },
}
"""As `BROKEN`, seen by `verify: full` only."""
