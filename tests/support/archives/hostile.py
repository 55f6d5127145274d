"""Archives that nobody built: whoever looks at one must not be harmed by it."""

import gzip
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrec_handler.archive.format import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    SAMPLES,
    Declined,
    Index,
    InputSignature,
    Report,
    Signature,
    TableEntry,
    align,
)
from torchrec_handler.archive.read import Call, Description

EVIL = (
    "</title></style><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    "\"'&{{1}}[bold]\x1b[31m\x07\u202e\u2028\n\ud800"
)
"""Markup, rich's markup, a template's, an escape sequence, a bell, a mark that turns the direction
of writing, line ends, and half a letter."""
SHOWN = (
    "</title></style><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    "\"'&{{1}}[bold]\\x1b[31m\\x07\\u202e\\u2028\\n\\ud800"
)
"""As people are to see it."""


def tables(names: Iterable[str]) -> tuple[TableEntry, ...]:
    """Tables of 1, 2, 3 and so on rows, one behind another."""
    found: list[TableEntry] = []
    end = 0
    for rows, name in enumerate(names, start=1):
        entry = TableEntry(
            collection="_module.tables",
            name=name,
            rows=rows,
            width=8,
            dtype="int8",
            row_bytes=12,
            offset=align(end),
            max_error=rows / 1000,
            mean_error=rows / 4000,
        )
        found.append(entry)
        end = entry.offset + entry.nbytes
    return tuple(found)


def index(names: Iterable[str], said: str = "said", **fields: Any) -> Index:
    """An index of tables of these names, with `said` wherever there is a text."""
    return Index(
        **{
            "format_version": FORMAT_VERSION,
            "versions": {said: said},
            "signature": Signature(
                inputs=(
                    InputSignature(
                        name=said,
                        type="sparse",
                        num_features=2,
                        features=(said, "movie"),
                        ids_below=(7, None),
                    ),
                ),
                methods={said: True, "raw": False},
                result_metadata="dict_of_tensor",
                outputs={said: [1, said]},
            ),
            "tables": tables(names),
            "extra_files": (said,),
            "sha256": {said: said, MANIFEST: "0" * 64},
            "samples": 2,
            "plan": said,
            "output_change": {said: 0.5},
            "kernels": Report(declined=(Declined(path=said, kernel=said, why=said),)),
            **fields,
        }
    )


def described(**fields: Any) -> Description:
    """What is read of a good archive of two tables, with other fields."""
    return Description(
        **{
            "index": index(["t_user", "t_movie"]),
            "model": {"modelName": "shop", "modelVersion": "1.0"},
            "sizes": {INDEX: 1000, MANIFEST: 500},
            "calls": (Call("forward", 1), Call("forward", 4), Call("raw", 1)),
            **fields,
        }
    )


def evil() -> Index:
    """An index whose every text is `EVIL`."""
    return index([EVIL, f"{EVIL}1", "t_good"], EVIL)


def mar(path: Path, members: dict[str, bytes]) -> Path:
    """A deflated archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write(path: Path, described: Index, model: Any = None, calls: Any = None) -> Path:
    """A deflated archive of an index, a manifest and the head of its samples."""
    named = {"modelName": "shop", "modelVersion": "1.0"} if model is None else model
    recorded = [{"qualname": "forward", "rows": rows} for rows in (1, 4)]
    head = {"__metadata__": {"samples": json.dumps(recorded if calls is None else calls)}}
    samples = json.dumps(head).encode()
    return mar(
        path,
        {
            INDEX: json.dumps(asdict(described)).encode(),
            MANIFEST: json.dumps({"model": named}).encode(),
            SAMPLES: struct.pack("<Q", len(samples)) + samples,
        },
    )


def bomb(path: Path, *, claimed: int = 2**31 - 2**24) -> Path:
    """An archive of 2 MB whose index inflates to 2 GB, whatever it claims."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(b" " * 2**24) + deflate.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(INDEX, block * 127 + b"\x03\x00")
    content = bytearray(path.read_bytes())
    for signature, method, size in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        at = content.index(signature) if method == 8 else content.rindex(signature)
        struct.pack_into("<H", content, at + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", content, at + size, claimed)
    path.write_bytes(content)
    return path


def long_name(path: Path) -> Path:
    """A .tar.gz of a member whose name is 2 GB long."""
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2**31
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.USTAR_FORMAT)))
    return path


def crowd(path: Path) -> Path:
    """A .tar.gz of 20,000 members."""
    path.write_bytes(gzip.compress(tarfile.TarInfo("shop/empty").tobuf() * 20_000, 1))
    return path
