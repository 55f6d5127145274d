"""The types that travel from stage to stage: raw bytes, decoded columns, a valid request.

Named tuples, as many are made and a frozen dataclass takes twice the time.

Letters in shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class RawRequest(NamedTuple):
    """A request as the server received it."""

    body: bytes | bytearray
    content_type: str = ""
    """Without parameters, lower case; empty when the client named none."""
    content_encoding: str = ""
    """As the client sent it; empty when the body is as it is."""
    accept: str = ""
    qualname: str = "forward"


class TypedRequest(NamedTuple):
    """A request whose server has read its tensors: nothing is parsed, and its answer is arrays."""

    arrays: Mapping[str, npt.NDArray[Any]]
    """By TorchRec's names, as in `Columns`."""
    qualname: str = "forward"


AnyRequest = RawRequest | TypedRequest


class Columns(NamedTuple):
    """What a codec read: arrays by TorchRec's names, not checked against each other yet.

    Sparse inputs have `NAME.lengths` and `NAME.values`, weighted ones `NAME.weights` too.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    shared: Mapping[str, Mask] = MappingProxyType({})
    """Sparse input -> [F] features that hold, in their first row, what all rows have."""
    batch_size: int | None = None


class Sparse(NamedTuple):
    """A valid sparse input, feature by feature, as KeyedJaggedTensor holds it.

    What all rows share is held once, as the first row's; `combine` gives it to the others.
    """

    lengths: Lengths
    """[F, B], of a shared feature 0 in all rows but the first."""
    values: Ids
    """[N]"""
    weights: Floats | None
    """[N], None for an input of type `sparse`."""
    shared: Mask | None = None
    """[F], None for nothing."""


class ValidRequest(NamedTuple):
    """A request that the model can take; nothing behind this type checks it again."""

    rows: int
    """B"""
    inputs: Mapping[str, Floats | Sparse]
    """Dense inputs are [B, F], embedding inputs [B, F, D]."""
    requests: int = 1
    """How many it holds: one, or as many as rows, put together by `single_rows`."""


class Response(NamedTuple):
    """An answer, ready to send."""

    content_type: str
    body: bytes
    arrays: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})
    """Of an answer to a `TypedRequest`, which has no body: one a name, see `codec.flat`."""
