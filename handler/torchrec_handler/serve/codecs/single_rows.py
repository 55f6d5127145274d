"""Requests of one row each, one behind another, as one request of as many rows.

Letters in shapes: R requests, F features, D width, N ids.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.request import Columns
from torchrec_handler.serve.transposed import transposed

Array = npt.NDArray[Any]


def single_rows(
    arrays: Mapping[str, Array],
    sizes: Mapping[str, Sequence[int]],
    inputs: Iterable[InputSignature],
) -> Columns:
    """Arrays as one request has them: dense [R, F], lengths [F * R], embeddings [F, R, D].

    Args:
        arrays: by TorchRec's names, of all requests along the first axis.
        sizes: how much of it each request has, [R].
        inputs: of the model.

    Raises:
        InvalidRequest: the requests have more rows, or something else that they have alone.
    """
    joined: dict[str, Array] = {}
    for entry in inputs:
        is_sparse = "sparse" in entry.type
        name = f"{entry.name}.lengths" if is_sparse else entry.name
        array, own = arrays.get(name), sizes.get(name, ())
        if array is None or not array.size or own.count(own[0]) < len(own):
            raise not_single()
        if is_sparse and (array.ndim == 1 or array.shape[1:] == (1,)):
            joined |= _sparse(entry, array.reshape(len(own), -1), arrays, sizes)
        elif entry.type == "dense" and (array.ndim == 1 or array.shape[:-1] == (len(own),)):
            joined[name] = array.reshape(len(own), -1)
        elif entry.type == "embedding" and array.ndim == 3 and array.shape[1] == 1:
            joined[name] = array.reshape(len(own), own[0], -1).swapaxes(0, 1)
        else:
            raise not_single()
    return Columns(joined)


def not_single() -> InvalidRequest:
    """That requests are not of a row each, which no client is told."""
    return InvalidRequest(said="not a row", where="body")


def _sparse(
    entry: InputSignature,
    lengths: Array,
    arrays: Mapping[str, Array],
    sizes: Mapping[str, Sequence[int]],
) -> Iterator[tuple[str, Array]]:
    """A sparse input's arrays feature by feature, of which lengths are [R, F]."""
    kinds = ("values", "weights") if entry.type == "weighted_sparse" else ("values",)
    lists = {name: arrays.get(name) for name in (f"{entry.name}.{kind}" for kind in kinds)}
    given = arrays.get(f"{entry.name}.values")
    # No sum of lengths overflows then.
    if given is None or lengths.min() < 0 or lengths.max() > given.size:
        raise not_single()
    counts = lengths.sum(axis=1).tolist()
    is_one_each = lengths.max() == 1 == lengths.min()
    yield f"{entry.name}.lengths", lengths.T.reshape(-1)
    for name, array in lists.items():
        if array is None or array.ndim != 1 or list(sizes[name]) != counts:
            raise not_single()
        if is_one_each:
            yield name, array.reshape(lengths.shape).T.reshape(-1)
        else:
            yield name, array[transposed(lengths)]
