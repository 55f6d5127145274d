"""What ranks wrote in pieces: whether all are there, and one tensor of them."""

import ctypes
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from torchrec_handler.errors import BuildError

BLOCK_BYTES = 8 * 2**20
"""Float bytes that are read and written at a time; a few of them fit a core's caches."""

MADV_PAGEOUT = 21
"""Linux' madvise: give the pages back now; what is not in a file yet stays."""

FEW = 5
"""How many gaps a message names."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where a piece lies in its tensor; rows are the first dimension, columns the second."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One rank's part of a tensor."""

    box: Box
    tensor: torch.Tensor
    file: Path
    """Where it was read from."""


def check_whole(name: str, shape: Sequence[int], boxes: Sequence[Box], where: str) -> None:
    """See that pieces make up a whole tensor.

    Raises:
        BuildError: says which rows or columns are missing, or that pieces overlap.
    """
    boxes = [box for box in boxes if math.prod(box.sizes)]  # a rank may have had nothing
    for box in boxes:
        ends = [at + size for at, size in zip(box.offsets, box.sizes, strict=True)]
        if (
            len(ends) != len(shape)
            or min((0, *box.offsets)) < 0
            or any(end > most for end, most in zip(ends, shape, strict=True))
        ):
            message = (
                f"weights: {name}: a piece of shape {box.sizes} at {box.offsets} lies outside of "
                f"its shape {tuple(shape)} in {where}"
            )
            raise BuildError(message)
    if any(_overlap(one, other) for one, other in combinations(boxes, 2)):
        message = f"weights: {name}: pieces overlap in {where}, expected each row once"
        raise BuildError(message)
    held = sum(math.prod(box.sizes) for box in boxes)
    total = math.prod(shape)
    missing = None
    for dim, word in list(enumerate(("rows", "columns")))[: len(shape)]:
        if missing is None and (gaps := _gaps(shape[dim], boxes, dim)):
            named = ", ".join(f"{start} to {end - 1}" for start, end in gaps[:FEW])
            more = f" and {len(gaps) - FEW} more stretches" if len(gaps) > FEW else ""
            missing = f"{word} {named}{more} of {shape[dim]} are missing"
    if missing is None and held < total:
        missing = f"{total - held} of {total} numbers are missing"
    if missing:
        message = (
            f"weights: {name}: {missing} in {where}; give the folder that holds the files of all "
            "ranks, or save with torch.distributed.checkpoint"
        )
        raise BuildError(message)


def join(
    name: str, whole: torch.Tensor, pieces: Sequence[Piece], where: str, file: Path
) -> torch.Tensor:
    """Put pieces together.

    Args:
        name: of the tensor, for messages.
        whole: has its shape and dtype, and no numbers.
        pieces: of any ranks, in any order; one that several ranks wrote counts once.
        where: what the pieces were read from, for messages.
        file: a scratch file to map the whole from, where it is in more than one piece.

    Raises:
        BuildError: pieces are missing, overlap, or differ where they lie in one place.
    """
    once: dict[tuple[int, ...], Piece] = {}
    for piece in pieces:
        if not math.prod(piece.box.sizes):
            continue
        if tuple(piece.tensor.shape) != piece.box.sizes:
            message = (
                f"weights: {name}: a piece in {piece.file} has shape {tuple(piece.tensor.shape)}, "
                f"but says that it has {piece.box.sizes}"
            )
            raise BuildError(message)
        known = once.setdefault(piece.box.offsets, piece)
        if known is not piece:
            check_same(name, known.tensor, known.file, piece.tensor, piece.file)
    parts = list(once.values())
    check_whole(name, whole.shape, [part.box for part in parts], where)
    if len(parts) == 1:
        return parts[0].tensor
    dtype = parts[0].tensor.dtype if parts else whole.dtype
    joined = scratch_tensor(file, whole.shape, dtype)
    for part in parts:
        place = tuple(
            slice(at, at + size) for at, size in zip(part.box.offsets, part.box.sizes, strict=True)
        )
        _copy(joined[place], part.tensor)
    return joined


def scratch_tensor(file: Path, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros that lies in a new file."""
    size = math.prod(shape)
    if not size:  # which cannot be mapped
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(tuple(shape))


def check_same(
    name: str, first: torch.Tensor, file: Path, second: torch.Tensor, other: Path
) -> None:
    """Refuse files of a folder that hold different values of one entry.

    Raises:
        BuildError: they do.
    """
    if first.dtype != second.dtype or not torch.equal(first, second):
        message = (
            f"weights: {name} differs between {file} and {other.name}; a folder holds one "
            "checkpoint in the files of its ranks: give one file where each is a checkpoint"
        )
        raise BuildError(message)


def page_out(block: torch.Tensor) -> None:
    """Let the pages of a mapped checkpoint go, so that a build's memory does not grow with it."""
    start = -(-block.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (block.data_ptr() + block.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start and block.is_contiguous():
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT
        )


def _copy(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy rows block by block, so that neither side stays in memory."""
    if not source.dim():
        to.copy_(source)
        return
    step = max(1, BLOCK_BYTES * source.shape[0] // source.nbytes)
    for start in range(0, source.shape[0], step):
        block = source[start : start + step]
        to[start : start + step] = block
        page_out(block)
        page_out(to[start : start + step])


def _overlap(one: Box, other: Box) -> bool:
    return all(
        start < second + others and second < start + size
        for start, size, second, others in zip(
            one.offsets, one.sizes, other.offsets, other.sizes, strict=True
        )
    )


def _gaps(size: int, boxes: Sequence[Box], dim: int) -> list[tuple[int, int]]:
    """Stretches of a dimension, [start, end), that no piece touches."""
    gaps, reached = [], 0
    spans = [(box.offsets[dim], box.offsets[dim] + box.sizes[dim]) for box in boxes]
    for start, end in [*sorted(spans), (size, size)]:
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, end)
    return gaps
