"""Arrays of several requests put together as one, and cut into each request's own again."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.serve.request import Floats, Mask

Array = npt.NDArray[Any]


def join(arrays: Sequence[Array]) -> Array:
    """Along the first axis; a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def unsigned(array: Array) -> npt.NDArray[np.uint64]:
    """Numbers below 0 are larger than any others then; an array of int64 is not copied."""
    return array.astype(np.int64, copy=False).view(np.uint64)


def as_floats(arrays: Sequence[Array]) -> Floats:
    """As float32 along the first axis; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return join(arrays).astype(np.float32)


def cut(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Each request's own part of a first axis."""
    size = sizes[0]
    if sizes.count(size) == len(sizes):
        return list(array.reshape(len(sizes), size))
    return [array[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def firsts(bad: Iterable[Mask]) -> Iterator[tuple[int, int]]:
    """Which requests have something bad, each with the first flat position of it."""
    for at, own in enumerate(bad):
        if own.any():
            yield at, int(own.argmax())
