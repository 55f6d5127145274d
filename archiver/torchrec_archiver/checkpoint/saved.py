"""What `torch.save` wrote, read without making any object of a class that it names.

`torch.load(weights_only=True)` makes tensors and plain containers. Sharded tensors, and what
trainers put beside weights, become inert records of stand-in classes; everything else is refused.
"""

import math
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

from torchrec_archiver.checkpoint.pieces import Box, Piece
from torchrec_handler.errors import BuildError

SHARD = "torch.distributed._shard"
RECORDS = (
    f"{SHARD}.metadata.ShardMetadata",
    f"{SHARD}.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    f"{SHARD}.sharded_tensor.metadata.ShardedTensorMetadata",
    f"{SHARD}.sharded_tensor.metadata.TensorProperties",
    f"{SHARD}.sharded_tensor.shard.Shard",
    f"{SHARD}.sharded_tensor.api.ShardedTensor.ProcessGroupState",
    f"{SHARD}.sharding_spec.api.EnumerableShardingSpec",
    f"{SHARD}.sharding_spec.chunk_sharding_spec.ChunkShardingSpec",
    "torch.distributed.remote_device._remote_device",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed._mesh_layout._FlatLayout",
    "torch.distributed._mesh_layout._MeshLayout",
    "torch.distributed.device_mesh.DeviceMesh",
    "torch.distributed.device_mesh._MeshLayout",
    "torch.distributed.tensor._dtensor_spec.DTensorSpec",
    "torch.distributed.tensor._dtensor_spec.ShardOrderEntry",
    "torch.distributed.tensor._dtensor_spec.TensorMeta",
    "torch.distributed.tensor.placement_types.Partial",
    "torch.distributed.tensor.placement_types.Replicate",
    "torch.distributed.tensor.placement_types.Shard",
    "torch.distributed.tensor.placement_types._StridedShard",
    # What trainers save beside weights.
    "argparse.Namespace",
    "builtins.list",
    "builtins.dict",
    "builtins.int",
    "builtins.float",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
)
"""Classes and functions whose calls become a `Record`."""

_lock = threading.Lock()
"""What `weights_only` allows is one set of the whole process."""


class Record:
    """An object that was pickled: what it was made of, and its attributes."""

    def __new__(cls, *args: Any) -> Self:
        """Take any arguments, as a constructor or in a constructor's place."""
        made = super().__new__(cls)
        made.args = args
        return made

    args: tuple[Any, ...]

    def __setstate__(self, state: Any) -> None:
        """Take attributes as pickle gives them: a dict, or a dict and slots."""
        self.__dict__.update(_attributes(state))


class Wrapper(torch.Tensor):
    """A tensor that only points to others: a ShardedTensor, a DTensor, or a DTensor's shards."""

    state: Any

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a plain function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do nothing: there is nothing in it."""
        message = f"{cls.__name__} holds no numbers for {func}"
        raise NotImplementedError(message)

    def __setstate__(self, state: Any) -> None:
        """Keep what pickle gives."""
        self.state = state


class Sharded(Wrapper):
    """In a ShardedTensor's place."""


class Distributed(Wrapper):
    """In a DTensor's place."""


class LocalShards(Wrapper):
    """In the place of a DTensor's local tensor that is several shards."""


def _nested_class(*_: Any) -> type[Record]:
    """In `getattr`'s place, by which pickle reaches a class inside a class."""
    return Record


ALLOWED: tuple[tuple[Callable[..., Any], str], ...] = (
    *((Record, name) for name in RECORDS),
    (_nested_class, "builtins.getattr"),
    (lambda *_: {}, "collections.defaultdict"),
    (Sharded, f"{SHARD}.sharded_tensor.api.ShardedTensor"),
    (Distributed, "torch.distributed.tensor.DTensor"),
    (Distributed, "torch.distributed._tensor.api.DTensor"),
    (Distributed, "torch.distributed.tensor._api.DTensor"),
    (LocalShards, "torch.distributed.tensor._shards_wrapper.LocalShardsWrapper"),
    (LocalShards, "torchrec.distributed.shards_wrapper.LocalShardsWrapper"),
)

MODULES = ("torch.nn.modules.", "torchrec.modules.", "torchrec.models.", "torchrec.distributed.")
"""Where classes of modules are; such a class in a file means that a whole module was pickled."""


def load_saved(path: Path) -> Any:
    """Read a file of `torch.save`.

    Returns:
        What was saved: tensors, mapped from the file, and `Wrapper`s in containers, and values.

    Raises:
        BuildError: it is something else, or holds what only unpickling could make.
    """
    _check_kind(path)
    with _only_allowed():
        try:
            return torch.load(
                path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
            )
        except Exception as error:
            if names := _refused(path, error):
                raise BuildError(_refusal(path, names)) from error
            # Of what is no pickle, pickle says nothing, and torch to unpickle it after all.
            is_told = isinstance(error, OSError | RuntimeError)
            told = str(error).partition("\n")[0] if is_told else "it is none, or damaged"
            message = f"weights: {path} cannot be read as a torch.save checkpoint: {told}"
            hint = None if is_told else "give the file or folder that training saved"
            raise BuildError(message, hint=hint) from error


def pieces_of(name: str, tensor: Wrapper, file: Path) -> list[Piece]:
    """What one file holds of a sharded tensor.

    Raises:
        BuildError: it is sharded in a way that is not known here.
    """
    try:
        if isinstance(tensor, Sharded):
            shards = tensor.state[0]
            found = [
                (shard.metadata.shard_offsets, shard.metadata.shard_sizes, shard.tensor)
                for shard in shards
            ]
        else:
            state = _attributes(tensor.state)
            local, spec = state["_local_tensor"], state["_spec"]
            if isinstance(local, LocalShards):
                inside = _attributes(local.state)
                chunks = inside["_storage_meta"].chunks
                found = [
                    (chunk.offsets, shard.shape, shard)
                    for chunk, shard in zip(chunks, inside["_local_shards"], strict=False)
                ]
            else:
                found = [(_offsets(tuple(tensor.shape), spec), local.shape, local)]
        return [
            Piece(
                box=Box(offsets=tuple(map(int, offsets)), sizes=tuple(map(int, sizes))),
                tensor=part.detach(),
                file=file,
            )
            for offsets, sizes, part in found
        ]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        message = (
            f"weights: {name} in {file} is sharded in a way that is not known here ({error}); save "
            "with torch.distributed.checkpoint"
        )
        raise BuildError(message) from error


def _offsets(shape: tuple[int, ...], spec: Any) -> tuple[int, ...]:
    """Where a rank's part of an evenly sharded DTensor starts, as torch.chunk cuts."""
    sizes, offsets = list(shape), [0] * len(shape)
    mesh = spec.mesh
    if hasattr(mesh, "mesh"):
        ranks = list(mesh.mesh.shape)
    else:
        layout = mesh._layout  # noqa: SLF001  a record's
        axes = [axis.shape for axis in layout.axes] if hasattr(layout, "axes") else layout.shape
        axes = axes if isinstance(axes, tuple | list) else [axes]
        ranks = [math.prod(axis) if isinstance(axis, tuple | list) else axis for axis in axes]
    here = mesh._coordinate_on_dim  # noqa: SLF001
    for placement, count, at in zip(spec.placements, ranks, here, strict=True):
        dim = getattr(placement, "dim", None)
        if hasattr(placement, "split_factor") or hasattr(placement, "reduce_op"):
            message = "strided or partial placement"
            raise ValueError(message)
        if dim is not None:
            step = -(-sizes[dim] // count)
            start = min(at * step, sizes[dim])
            offsets[dim] += start
            sizes[dim] = min(step, sizes[dim] - start)
    return tuple(offsets)


def _attributes(state: Any) -> dict[str, Any]:
    parts = state if isinstance(state, tuple) else (state,)
    return {
        str(name): value
        for part in parts
        if isinstance(part, Mapping)
        for name, value in part.items()
    }


@contextmanager
def _only_allowed() -> Iterator[None]:
    """Let `weights_only` make nothing but what is in `ALLOWED`, whatever others allowed."""
    with _lock:
        before = get_safe_globals()
        clear_safe_globals()
        add_safe_globals(list(ALLOWED))
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)


def _refused(path: Path, error: Exception) -> list[str]:
    """Names of the classes and functions that the file wants and does not get."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001  of older formats, which cannot be looked into
        return re.findall(r"GLOBAL (\S+) was not an allowed", str(error))


def _refusal(path: Path, names: list[str]) -> str:
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
    if any(name.startswith(MODULES) for name in names):
        return (
            f"weights: {path} holds a whole pickled module ({named}), which is not loaded, since "
            "unpickling could run code; where it was trained, save its weights alone: "
            "torch.save(model.state_dict(), PATH)"
        )
    return (
        f"weights: {path} holds objects that are no tensors ({named}), which are not loaded, since "
        "unpickling could run code; save the weights alone where it was trained, "
        "torch.save(model.state_dict(), PATH), or out of a file that you trust, "
        'torch.save(torch.load(OLD, weights_only=False)["model"], PATH)'
    )


def _check_kind(path: Path) -> None:
    """Refuse by name what people also call weights."""
    kind = None
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if not start:
            kind = "empty"
        elif start == b"\x89HDF\r\n\x1a\n" or path.suffix in {".h5", ".hdf5", ".keras"}:
            kind = "an HDF5 or Keras file"
        elif path.suffix == ".onnx":
            kind = "an ONNX model"
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                kind = "a TorchScript archive"
            elif any("/.data/extern_modules" in name for name in names):
                kind = "a torch.package"
    except (OSError, zipfile.BadZipFile) as error:
        message = f"weights: {path} cannot be read: {error}"
        raise BuildError(message) from error
    if kind:
        message = (
            f"weights: {path} is {kind}, expected a state_dict: torch.save(model.state_dict(), "
            "PATH) where it was trained"
        )
        raise BuildError(message)
