"""Third step of building: read a trained checkpoint of any usual format, without holding it.

Every format ends as tensors that are mapped from a file, so a table is paged in as it is quantized
and may be dropped again behind the reader.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from torchrec_handler.errors import BuildError

SAFETENSORS_INDEX = ".safetensors.index.json"
DCP_METADATA = ".metadata"

State = dict[str, torch.Tensor]
"""Checkpoint name -> tensor."""


def read_checkpoint(path: Path, scratch: Path) -> State:
    """Read a checkpoint.

    Args:
        path: a `torch.save` file; a `.safetensors` file; the index of a sharded one, or its folder
            (`*.safetensors.index.json`); the folder of a `torch.distributed.checkpoint`.
        scratch: a folder for the tensors of the last, which it keeps in pieces.

    Raises:
        BuildError: it cannot be read, or is not a dict of tensors.
    """
    if not path.exists():
        message = f"weights: {path} does not exist"
        raise BuildError(message)
    if path.is_dir():
        if (path / DCP_METADATA).is_file():
            return _read_distributed(path, scratch)
        indexes = sorted(path.glob(f"*{SAFETENSORS_INDEX}"))
        if len(indexes) == 1:
            return _read_sharded(indexes[0])
        message = (
            f"weights: {path} is a folder without {DCP_METADATA} (torch.distributed.checkpoint) "
            f"or one *{SAFETENSORS_INDEX}, expected one of them or a file"
        )
        raise BuildError(message)
    if path.name.endswith(SAFETENSORS_INDEX):
        return _read_sharded(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_saved(path)


def rename(state: Mapping[str, torch.Tensor], prefixes: Mapping[str, str]) -> State:
    """Replace prefixes of names: OLD -> NEW, the longest OLD that fits; other names stay.

    Raises:
        BuildError: an OLD fits no name, or two entries would have one name.
    """
    renamed: State = {}
    unused = set(prefixes)
    for name, value in state.items():
        old = max((old for old in prefixes if name.startswith(old)), key=len, default=None)
        new = name if old is None else prefixes[old] + name.removeprefix(old)
        if old is not None:
            unused.discard(old)
        if new in renamed:
            message = f"weights-map: two entries would be called {new}, one of them {name}"
            raise BuildError(message)
        renamed[new] = value
    if unused:
        message = (
            f"weights-map: no entry starts with {', '.join(map(repr, sorted(unused)))}; "
            f"the first entries are {', '.join(list(state)[:3])}"
        )
        raise BuildError(message)
    return renamed


def _read_saved(path: Path) -> State:
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        message = f"weights: {path} cannot be read as a torch.save checkpoint: {reason}"
        raise BuildError(message) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        message = f"weights: {path} holds {_describe(state)}, expected a state_dict of tensors"
        raise BuildError(message)
    return dict(state)


def _read_safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        message = f"weights: {path} cannot be read as safetensors: {error}"
        raise BuildError(message) from error


def _read_sharded(index: Path) -> State:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: index.parent / name for name in sorted(set(files.values()))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"weights: {index} is not an index of safetensors ({error!r})"
        raise BuildError(message) from error
    state: State = {}
    for shard in shards.values():
        state.update(_read_safetensors(shard))
    if absent := sorted(set(files) - state.keys()):
        message = f"weights: {index} lists {', '.join(absent)}, which its shards do not hold"
        raise BuildError(message)
    return {name: state[name] for name in files}


def _read_distributed(path: Path, scratch: Path) -> State:
    """Put the pieces that the ranks wrote together, in a file a tensor, one after another.

    The default process group has to be there.
    """
    try:
        reader = FileSystemReader(path)
        entries = reader.read_metadata().state_dict_metadata
        state: State = {}
        for number, (name, entry) in enumerate(entries.items()):
            if isinstance(entry, TensorStorageMetadata):
                file = scratch / f"{number}.bin"
                state[name] = torch.from_file(
                    str(file),
                    shared=True,
                    size=entry.size.numel(),
                    dtype=entry.properties.dtype,
                ).view(entry.size)
                load({name: state[name]}, storage_reader=reader)
    except (CheckpointException, Exception) as error:
        cause: BaseException = error
        if isinstance(error, CheckpointException):  # of one rank, but made for many
            cause = next(iter(error.failures.values()))[0]
        reason = str(cause).partition("\n")[0]
        message = f"weights: {path} cannot be read as a torch.distributed.checkpoint: {reason}"
        raise BuildError(message) from error
    return state


def _describe(state: object) -> str:
    if isinstance(state, Mapping):
        odd = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
        return f"a dict whose {', '.join(odd[:5])} are no tensors"
    return f"a {type(state).__name__}"
