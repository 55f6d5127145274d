"""Folders of torchsnapshot, which is no longer kept up, read by what its manifest says."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
import yaml

from torchrec_archiver.checkpoint.entries import Checkpoint, Entry
from torchrec_archiver.checkpoint.pieces import Box, Piece, check_same, join
from torchrec_archiver.checkpoint.saved import load_saved
from torchrec_handler.errors import BuildError

MANIFEST = ".snapshot_metadata"

PIECES = {"ShardedTensor": "shards", "ChunkedTensor": "chunks"}
"""Type of a tensor in pieces -> where the manifest lists them."""

DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def read_snapshot(path: Path, scratch: Path) -> Checkpoint:
    """Read a snapshot of any number of ranks; what is no tensor is not read.

    Raises:
        BuildError: it cannot be read, or keeps tensors in a way that is not known here.
    """
    pieces: dict[str, list[Mapping[str, Any]]] = {}
    parts: dict[str, str] = {}
    others: dict[str, None] = {}
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, in C
        manifest = yaml.load(text, Loader=loader)["manifest"]  # noqa: S506  it is the safe one
        for logical, held in manifest.items():
            keys = [unquote(key) for key in logical.split("/")[1:]]  # the first is the rank
            name = ".".join(keys)
            if held["type"] in {"dict", "OrderedDict", "list"}:
                continue
            if held["type"] == "Tensor":
                found = [{"tensor": held, "offsets": [0] * len(held["shape"])}]
            elif held["type"] in PIECES:
                found = held[PIECES[held["type"]]]
            else:
                others[name] = None
                continue
            pieces.setdefault(name, []).extend(found)
            parts[name] = ".".join(keys[:-1])
        entries = {
            name: Entry(
                shape=_shape(found),
                read=_reader(path, name, found, scratch / f"{number}.bin"),
                part=parts[name],
            )
            for number, (name, found) in enumerate(pieces.items())
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"weights: {path} cannot be read as a torchsnapshot: {error!r}"
        raise BuildError(message) from error
    return Checkpoint(entries=entries, others=list(others))


def _shape(pieces: list[Mapping[str, Any]]) -> tuple[int, ...]:
    """Of the whole, which the manifest leaves to what its pieces reach to."""
    ends = [
        [at + size for at, size in zip(piece["offsets"], piece["tensor"]["shape"], strict=True)]
        for piece in pieces
    ]
    return tuple(max(reached) for reached in zip(*ends, strict=True))


def _reader(
    path: Path, name: str, pieces: list[Mapping[str, Any]], file: Path
) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        shape = _shape(pieces)
        held = [
            Piece(
                box=Box(offsets=tuple(piece["offsets"]), sizes=tuple(piece["tensor"]["shape"])),
                tensor=_map(path, name, piece["tensor"]),
                file=path / piece["tensor"]["location"],
            )
            for piece in pieces
        ]
        if not shape:  # a single number has no place among others
            for other in held[1:]:
                check_same(name, held[0].tensor, held[0].file, other.tensor, other.file)
            return held[0].tensor
        like = torch.empty(shape, dtype=held[0].tensor.dtype, device="meta")
        return join(name, like, held, str(path), file)

    return read


def _map(path: Path, name: str, held: Mapping[str, Any]) -> torch.Tensor:
    where, serializer = held["location"], held["serializer"]
    file = path / where
    if not file.resolve().is_relative_to(path.resolve()):
        raise _unreadable(path, name, f"{where} lies outside of the folder")
    if not file.is_file():
        raise _unreadable(path, name, f"{where} does not exist")
    if serializer == "torch_save":
        saved = load_saved(file)
        if not isinstance(saved, torch.Tensor):
            raise _unreadable(path, name, f"{where} holds a {type(saved).__name__}")
        return saved
    if serializer != "buffer_protocol" or held["dtype"] not in DTYPES:
        raise _unreadable(path, name, f"{held['dtype']} by {serializer} is not known here")
    dtype, shape = DTYPES[held["dtype"]], held["shape"]
    size = math.prod(shape) * dtype.itemsize
    start, end = held.get("byte_range") or (0, size)
    if end - start != size or not 0 <= start <= end <= file.stat().st_size:
        reason = f"{where} has no {size} bytes from {start} to {end} for shape {shape}"
        raise _unreadable(path, name, reason)
    if not size:
        return torch.empty(shape, dtype=dtype)
    mapped = torch.from_file(str(file), size=end, dtype=torch.uint8)[start:]
    # Files that hold several tensors do not align them.
    aligned = mapped if start % dtype.itemsize == 0 else mapped.clone()
    return aligned.view(dtype).view(shape)


def _unreadable(path: Path, name: str, reason: str) -> BuildError:
    return BuildError(f"weights: {path} cannot be read as a torchsnapshot: {name}: {reason}")
