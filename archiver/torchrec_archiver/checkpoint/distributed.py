"""Folders of `torch.distributed.checkpoint`, read without unpickling anything but tensors."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
import torch.distributed._shard.sharded_tensor.metadata as sharded
from torch.distributed.checkpoint import metadata as contents
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    _StorageInfo,
    _StoragePrefix,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.serialization import _get_layout

from torchrec_archiver.checkpoint.entries import Checkpoint, Entry
from torchrec_archiver.checkpoint.pieces import Box, check_whole, scratch_tensor
from torchrec_handler.errors import BuildError

METADATA = ".metadata"

CLASSES: dict[str, Any] = {
    **{
        f"torch.distributed.checkpoint.metadata.{kind.__name__}": kind
        for kind in (
            contents.BytesStorageMetadata,
            contents.ChunkStorageMetadata,
            contents.Metadata,
            contents.MetadataIndex,
            contents.StorageMeta,
            contents.TensorProperties,
            contents.TensorStorageMetadata,
            contents._MEM_FORMAT_ENCODING,  # noqa: SLF001  its pickled name
        )
    },
    "torch.distributed.checkpoint.filesystem._StorageInfo": _StorageInfo,
    "torch.distributed.checkpoint.filesystem._StoragePrefix": _StoragePrefix,
    # Of torch before 2.3.
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": sharded.TensorProperties,
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING": (
        sharded.MEM_FORMAT_ENCODING
    ),
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": _get_layout,
    "collections.OrderedDict": OrderedDict,
    **dict.fromkeys(
        ("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"), PurePosixPath
    ),
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
"""Name -> what a metadata file may refer to; none of it does anything when it is made."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Look up in `CLASSES`, and nowhere else: nothing is imported."""
        if f"{module}.{name}" not in CLASSES:
            message = f"it refers to {module}.{name}, which such a file has no use for"
            raise pickle.UnpicklingError(message)
        return CLASSES[f"{module}.{name}"]


class Reader(FileSystemReader):
    """torch's own reader, but for the metadata."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with (path / METADATA).open("rb") as file:
            self.metadata = _read_metadata(file, path)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What was read already; torch's own unpickles whatever the file names."""
        return self.metadata


def read_distributed(path: Path, scratch: Path) -> Checkpoint:
    """Read the folder of a `torch.distributed.checkpoint`; what is no tensor is not read.

    A tensor's pieces, of any number of ranks, are put together in a file when it is wanted. The
    default process group has to be there then.

    Raises:
        BuildError: it cannot be read, or refers to anything but a checkpoint's own classes.
    """
    try:
        reader = Reader(path)
        found = dict(reader.metadata.state_dict_metadata)
        keys = reader.metadata.planner_data
        parts = {
            name: ".".join(map(str, keys[name][:-1]))
            for name in found
            if isinstance(keys, dict) and isinstance(keys.get(name), tuple)
        }
        entries = {
            name: Entry(
                shape=tuple(entry.size),
                read=_reader(reader, name, entry, scratch / f"{number}.bin"),
                part=parts.get(name, ""),
            )
            for number, (name, entry) in enumerate(found.items())
            if isinstance(entry, TensorStorageMetadata)
        }
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(_unreadable(path, error)) from error
    return Checkpoint(entries=entries, others=[name for name in found if name not in entries])


def _reader(
    reader: Reader, name: str, entry: TensorStorageMetadata, file: Path
) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        boxes = [
            Box(offsets=tuple(chunk.offsets), sizes=tuple(chunk.sizes)) for chunk in entry.chunks
        ]
        check_whole(name, entry.size, boxes, str(reader.path))
        whole = scratch_tensor(file, entry.size, entry.properties.dtype)
        try:
            load({name: whole}, storage_reader=reader)
        except (CheckpointException, Exception) as error:
            raise BuildError(_unreadable(Path(reader.path), error)) from error
        return whole

    return read


def _read_metadata(file: IO[bytes], folder: Path) -> Metadata:
    metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        message = f"{METADATA} holds a {type(metadata).__name__}"
        raise TypeError(message)
    inside = folder.resolve()
    for info in (metadata.storage_data or {}).values():
        if not (folder / info.relative_path).resolve().is_relative_to(inside):
            message = f"{METADATA} names {info.relative_path}, which lies outside of the folder"
            raise ValueError(message)
    return metadata


def _unreadable(path: Path, error: BaseException) -> str:
    cause = error
    if isinstance(error, CheckpointException):  # of one rank, but made for many
        cause = next(iter(error.failures.values()))[0]
    reason = str(cause).partition("\n")[0]
    return f"weights: {path} cannot be read as a torch.distributed.checkpoint: {reason}"
