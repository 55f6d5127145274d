"""Requests whose server has read their tensors: nothing is parsed, and answers are arrays.

Letters in shapes: R requests, B rows, F features, D width, N ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.codecs.codec import Asked, Model, flat
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_arrays import check_size
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.codecs.single_rows import not_single, single_rows
from torchrec_handler.serve.request import Columns, Response, TypedRequest

Array = npt.NDArray[Any]


class Typed:
    """Takes arrays as they are: what a body's tensors would have to be, they have to be too."""

    name = "typed"
    content_types = ()

    def __init__(self, model: Model) -> None:
        self._columns = model.columns
        first = model.signature.inputs[0]
        self._first = f"{first.name}.lengths" if "sparse" in first.type else first.name
        self._row_shapes = _row_shapes(first)

    def is_row(self, request: TypedRequest) -> bool:
        """Whether it is of one row, as far as its first input tells."""
        first = request.arrays.get(self._first)
        return first is not None and first.shape in self._row_shapes

    def decode(self, request: TypedRequest) -> Columns:
        """Take a request's arrays.

        Raises:
            InvalidRequest: an unknown name, or elements of another kind.
            RequestTooLarge: an array is longer than the limits allow.
        """
        return self.read(request.arrays)

    def read(self, arrays: Mapping[str, Array]) -> Columns:
        """Take arrays, as `decode` does."""
        for name, array in arrays.items():
            column = self._columns.get(name)
            if column is None:
                raise InvalidRequest(
                    said="unknown input",
                    where=shortened(name),
                    expected=f"one of {', '.join(self._columns)}",
                )
            _check_kind(name, array, column)
            check_size(name, array.size, column)
        return Columns(arrays)

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:  # noqa: ARG002
        """One array a name."""
        return Response(content_type="", body=b"", arrays=flat(answer))


class TypedTogether:
    """Requests of a row each, their arrays put one behind another."""

    def __init__(self, requests: Sequence[Mapping[str, Array]]) -> None:
        """Put them together.

        Args:
            requests: arrays by name, the same names in the same order in each.

        Raises:
            InvalidRequest: arrays of a name cannot be put together.
        """
        self._requests = requests
        self._each = dict(
            zip(requests[0], zip(*[own.values() for own in requests], strict=True), strict=True)
        )
        try:
            self.joined = {name: np.concatenate(own) for name, own in self._each.items()}
        except ValueError:
            raise not_single() from None

    def rows(self, read: Columns, inputs: Sequence[InputSignature]) -> Columns:
        """All of them as one request's, of a row of each.

        Raises:
            InvalidRequest: one has more rows.
        """
        sizes = {name: list(map(len, own)) for name, own in self._each.items()}
        return single_rows(read.arrays, sizes, inputs)

    def cut(self, read: Columns) -> list[Columns]:  # noqa: ARG002
        """Each request's own."""
        return list(map(Columns, self._requests))


def _row_shapes(entry: InputSignature) -> frozenset[tuple[int, ...]]:
    """Of one row of an input's dense, embedding or lengths array; none where they are not known."""
    features, width = entry.num_features, entry.width
    if features is None:
        return frozenset()
    if entry.type == "embedding":
        return frozenset() if width is None else frozenset({(features, 1, width)})
    if entry.type == "dense":
        return frozenset({(features,), (1, features)})
    return frozenset({(features,), (features, 1)})


def _check_kind(name: str, array: Array, column: Column) -> None:
    kinds, expected = ("iu", "integers") if column.is_integer else ("fiu", "numbers")
    if array.dtype.kind not in kinds:
        raise InvalidRequest(where=name, received=str(array.dtype), expected=expected)
