"""Third step of building: read a trained checkpoint of any usual format, without holding it.

Every format ends as tensors that are mapped from a file, so a table is paged in as it is quantized
and may be dropped again behind the reader.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from torchrec_archiver.checkpoint.distributed import METADATA, read_distributed
from torchrec_archiver.checkpoint.entries import Checkpoint, from_tensors
from torchrec_archiver.checkpoint.saved import load_saved
from torchrec_archiver.checkpoint.snapshot import MANIFEST, read_snapshot
from torchrec_archiver.near import near_path
from torchrec_handler.errors import BuildError

INDEXES = (".safetensors.index.json", ".bin.index.json")
"""Ends of the names of Hugging Face's indexes of a checkpoint in several files."""

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Of the files in a folder that are read, those of the ranks of one job."""


class CheckpointFormat(Protocol):
    """One way to keep weights."""

    def fits(self, path: Path) -> bool:
        """Whether a path is of this format."""

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        """Read it; tensors are mapped, not held."""


class Distributed:
    """The folder of a `torch.distributed.checkpoint`."""

    def fits(self, path: Path) -> bool:
        """By its metadata file."""
        return (path / METADATA).is_file()

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        """Put the pieces that the ranks wrote together."""
        return read_distributed(path, scratch)


class Snapshot:
    """The folder of a torchsnapshot."""

    def fits(self, path: Path) -> bool:
        """By its manifest."""
        return (path / MANIFEST).is_file()

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        """Put the pieces that the ranks wrote together."""
        return read_snapshot(path, scratch)


class Indexed:
    """Files that an index of Hugging Face's lists, or the folder that holds them."""

    def fits(self, path: Path) -> bool:
        """By the index's name."""
        return self._index(path) is not None

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        """Read every file that it lists."""
        index = self._index(path)
        assert index is not None  # noqa: S101  fits() said so
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = [index.parent / name for name in sorted(set(listed.values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"weights: {index} is not an index of weights ({error!r})"
            raise BuildError(message) from error
        checkpoint = from_tensors({file: _load(file) for file in files}, scratch)
        if absent := sorted(set(listed) - checkpoint.entries.keys()):
            message = f"weights: {index} lists {', '.join(absent)}, which its files do not hold"
            raise BuildError(message)
        return checkpoint

    def _index(self, path: Path) -> Path | None:
        if path.is_dir():
            indexes = [found for found in sorted(path.iterdir()) if found.name.endswith(INDEXES)]
            return indexes[0] if len(indexes) == 1 else None
        return path if path.name.endswith(INDEXES) else None


class Ranks:
    """A folder with a file of each rank."""

    def fits(self, path: Path) -> bool:
        """By the names of its files."""
        return path.is_dir() and bool(self._files(path))

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        """Read them in the order of their numbers."""
        return from_tensors({file: _load(file) for file in self._files(path)}, scratch)

    def _files(self, path: Path) -> list[Path]:
        found = [file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()]
        return sorted(
            found, key=lambda file: [int(n) if n.isdigit() else n for n in _numbers(file.name)]
        )


class Single:
    """One file."""

    def fits(self, path: Path) -> bool:
        """Anything that is no folder."""
        return path.is_file()

    def read(self, path: Path, scratch: Path) -> Checkpoint:
        """Read it."""
        return from_tensors({path: _load(path)}, scratch)


FORMATS: Sequence[CheckpointFormat] = (Distributed(), Snapshot(), Indexed(), Ranks(), Single())
"""The first that fits is taken."""


def read_checkpoint(weights: Path | Mapping[str, Any], scratch: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        weights: a `torch.save` file; a `.safetensors` file; an index of several of them, or its
            folder; a folder with a file of each rank; the folder of a
            `torch.distributed.checkpoint`. Or what such a file holds: tensors, nested in dicts.
        scratch: a folder for tensors that were kept in pieces.

    Raises:
        BuildError: it cannot be read.
    """
    if not isinstance(weights, Path):
        return from_tensors({Path("weights"): weights}, scratch)
    for kind in FORMATS:
        if kind.fits(weights):
            return kind.read(weights, scratch)
    if not weights.exists():
        message = f"weights: {weights} does not exist"
        raise BuildError(message, hint=near_path(weights))
    message = (
        f"weights: {weights} is a folder without {METADATA} (torch.distributed.checkpoint), "
        f"one *{' or *'.join(INDEXES)}, or files of ranks ({', '.join(SUFFIXES)})"
    )
    raise BuildError(message)


def _load(path: Path) -> Any:
    return _load_safetensors(path) if path.suffix == ".safetensors" else load_saved(path)


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        message = f"weights: {path} cannot be read as safetensors: {error}"
        raise BuildError(message) from error


def _numbers(name: str) -> list[str]:
    return re.split(r"(\d+)", name)
