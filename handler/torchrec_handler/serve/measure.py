"""What a request is going to hold, told by its arrays' shapes before anything large is made."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from operator import mul
from typing import NamedTuple

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Limits
from torchrec_handler.serve.request import Columns

SPARSE = frozenset({"sparse", "weighted_sparse"})

REMEMBERED = 1_024
"""Shapes of requests, most of which come again."""

Shape = tuple[int, ...]


class Form:
    """What all requests have in common whose shapes are equal but for the numbers of ids."""

    def __init__(self, rows: int, times: Sequence[int]) -> None:
        self.rows = rows
        """B"""
        self.times = times
        """Of each sparse input, how many rows have each of its lists: one, or all."""


class Size(NamedTuple):
    """What a request makes the forward calls hold."""

    rows: int
    """B"""
    ids: int
    """Of all sparse inputs, each as often as a row has it."""
    form: Form | None = None
    """None for what does not go by the model's inputs."""


class Measure:
    """Measures requests of one model: the shapes of all arrays of what passes agree."""

    def __init__(self, signature: Signature, limits: Limits) -> None:
        self._inputs = signature.inputs
        self._limits = limits
        self._sparse = [entry for entry in signature.inputs if entry.type in SPARSE]
        self._names = [
            *(
                f"{entry.name}.lengths" if entry.type in SPARSE else entry.name
                for entry in signature.inputs
            ),
            *(f"{entry.name}.values" for entry in self._sparse),
            *(f"{entry.name}.weights" for entry in self._sparse if entry.type == "weighted_sparse"),
        ]
        self._nothing = (0,) * len(self._sparse)
        self._form = lru_cache(REMEMBERED)(self._read_form)
        self._size = lru_cache(REMEMBERED)(self._read_size)

    def __call__(self, columns: Columns) -> Size:
        """Measure one request.

        Raises:
            InvalidRequest: an array is missing, or has a shape that no request has.
            RequestTooLarge: more rows or ids than the limits.
        """
        arrays = columns.arrays
        try:
            shapes = tuple([arrays[name].shape for name in self._names])
        except KeyError as error:
            self._check_before(columns, error.args[0])
            given = ", ".join(arrays) or "nothing"
            raise InvalidRequest(said="missing", where=error.args[0], received=given) from None
        if columns.shared and columns.batch_size != 1:
            shared = tuple(_shared_ids(entry, columns) for entry in self._sparse)
            return self._size(shapes, columns.batch_size, shared)
        return self._size(shapes, columns.batch_size, self._nothing)

    def _check_before(self, columns: Columns, missing: str) -> None:
        """Look at the arrays before a missing one, of which a client hears first."""
        names = self._names[: self._names.index(missing)][: len(self._inputs)]
        blocks = [columns.arrays[name].shape for name in names]
        for entry, shape in zip(self._inputs, blocks, strict=False):
            _rows(entry, shape, columns.batch_size)
        if len(blocks) == len(self._inputs):
            self._form(tuple(blocks), columns.batch_size)

    def _read_size(
        self, shapes: Sequence[Shape], batch_size: int | None, shared: Sequence[int]
    ) -> Size:
        """The size of a request.

        Args:
            shapes: of all arrays, in the order of their names.
            batch_size: if the request has one.
            shared: ids of each sparse input that the first row holds for all.
        """
        form = self._form(shapes[: len(self._inputs)], batch_size)
        lists = iter(shapes[len(self._inputs) :])
        values = list(islice(lists, len(self._sparse)))
        given = []
        for entry, shape, more in zip(self._sparse, values, shared, strict=True):
            if len(shape) != 1:
                raise InvalidRequest(
                    where=f"{entry.name}.values",
                    received=f"shape {_shown(shape)}",
                    expected="a flat list",
                )
            if entry.type == "weighted_sparse" and (weights := next(lists)) != shape:
                raise InvalidRequest(
                    where=f"{entry.name}.weights",
                    received=f"{_shown(weights)} weights",
                    expected=f"{shape[0]}, one for each of {entry.name}.values",
                )
            given.append(shape[0] + more * (form.rows - 1))
        ids = sum(map(mul, given, form.times))
        if ids > self._limits.ids_per_request:
            received = " and ".join(
                f"{size} ids of {entry.name}" + (f" x {times} rows" if times > 1 else "")
                for entry, size, times in zip(self._sparse, given, form.times, strict=True)
            )
            expected = f"at most {self._limits.ids_per_request} ids (limits.ids_per_request)"
            raise RequestTooLarge(received=received, expected=expected)
        return Size(form.rows, ids, form)

    def _read_form(self, blocks: Sequence[Shape], batch_size: int | None) -> Form:
        """How many rows there are, by the shapes of dense inputs, embeddings and lengths."""
        shown = [
            _rows(entry, shape, batch_size)
            for entry, shape in zip(self._inputs, blocks, strict=True)
        ]
        rows = batch_size or max(shown)
        if not rows:
            raise self._no_rows(blocks)
        if rows > self._limits.rows_per_request:
            raise RequestTooLarge(
                received=f"{rows} rows",
                expected=f"at most {self._limits.rows_per_request} (limits.rows_per_request)",
            )
        times = []
        for entry, shape, own in zip(self._inputs, blocks, shown, strict=True):
            if entry.type in SPARSE:
                times.append(rows // _lists(entry, shape, rows))
            elif own not in (rows, 1):
                raise InvalidRequest(
                    where=entry.name, received=f"{own} rows", expected=f"{rows} (or 1 for all)"
                )
        return Form(rows, times)

    def _no_rows(self, blocks: Sequence[Shape]) -> InvalidRequest:
        for entry, shape in zip(self._inputs, blocks, strict=True):
            received = math.prod(shape)
            if entry.num_features and received:
                return InvalidRequest(
                    where=f"{entry.name}.lengths",
                    received=f"{received} lengths",
                    expected=f"{entry.num_features} features x B rows",
                )
        return InvalidRequest(
            said="holds no rows",
            where=self._inputs[0].name,
            expected="at least one (where no input tells the rows, give batch_size)",
        )


def _rows(entry: InputSignature, shape: Shape, batch_size: int | None) -> int:
    """How many rows a block shows, 0 for none."""
    features = entry.num_features
    if entry.type in SPARSE:
        if len(shape) > 1:
            return shape[1]
        rows, rest = divmod(math.prod(shape), features) if features else (0, 0)
        return 0 if rest else rows
    shown = str(batch_size or "B")
    if entry.type == "dense":
        block = (1, *shape) if len(shape) == 1 else shape
        expected = f"{shown} rows x {features or 'F'} features"
        is_good = len(block) == 2 and features in (None, block[1])
        rows = block[0] if block else 0
    else:
        block = shape
        expected = f"{features or 'F'} features x {shown} rows x {entry.width or 'D'} wide"
        is_good = (
            len(block) == 3 and features in (None, block[0]) and entry.width in (None, block[2])
        )
        rows = block[1] if is_good else 0
    if not is_good or not math.prod(block):
        raise InvalidRequest(where=entry.name, received=f"shape {_shown(shape)}", expected=expected)
    return rows


def _lists(entry: InputSignature, shape: Shape, rows: int) -> int:
    """How many lists a sparse input has of each feature: one a row, or one for all rows."""
    features = entry.num_features or count_features(shape, rows)
    if shape in ((features * rows,), (features, rows)):
        return rows
    if shape in ((features,), (features, 1)):
        return 1
    received = f"{shape[0]} lengths" if len(shape) == 1 else f"shape {_shown(shape)}"
    expected = f"{entry.num_features or 'F'} features x {rows} rows"
    if entry.num_features:
        expected += f" = {features * rows}"
    raise InvalidRequest(where=f"{entry.name}.lengths", received=received, expected=expected)


def count_features(lengths: Shape, rows: int) -> int:
    """How many features lengths of a shape are of, where only the request can tell."""
    return max(1, math.prod(lengths) // rows if len(lengths) == 1 else lengths[0])


def _shared_ids(entry: InputSignature, columns: Columns) -> int:
    shared = columns.shared.get(entry.name)
    if shared is None:
        return 0
    lengths = columns.arrays[f"{entry.name}.lengths"].reshape(len(shared), -1)
    # Those below 0 are told of later.
    return max(int(lengths[shared, 0].sum()), 0)


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape))
