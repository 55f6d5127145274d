"""Requests of one row each, all checked at once, which takes little longer than checking one.

The rules are those of `validate`. Where one of the requests breaks any of them, or has ids to be
replaced, nothing is said here: `validate` then takes the requests one by one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.options import Options
from torchrec_handler.serve.request import Columns, Floats, Sparse, ValidRequest
from torchrec_handler.serve.validate import SPARSE, last_ids, longest_lists


class SingleRows:
    """Checks requests of one model."""

    def __init__(self, signature: Signature, options: Options) -> None:
        self._inputs = signature.inputs
        self._most_ids = options.limits.ids_per_request
        self._names = tuple(entry.name for entry in signature.inputs)
        self._knows_sizes = all(
            entry.num_features and entry.type != "embedding" for entry in signature.inputs
        )
        self._blocks: list[tuple[str, int, tuple[int, int]]] = []
        """What holds a number a feature: its name, how many, its shape with a row's axis."""
        self._lists: list[tuple[str, bool]] = []
        """What holds ids (true), or their weights."""
        for entry in signature.inputs:
            features = entry.num_features or 0
            if entry.type not in SPARSE:
                self._blocks.append((entry.name, features, (1, features)))
                continue
            self._blocks.append((f"{entry.name}.lengths", features, (features, 1)))
            self._lists.append((f"{entry.name}.values", True))
            if entry.type == "weighted_sparse":
                self._lists.append((f"{entry.name}.weights", False))
        sparse = [entry for entry in signature.inputs if entry.type in SPARSE]
        self._last_ids = {entry.name: last_ids(entry) for entry in sparse}
        self._longest = {entry.name: longest_lists(entry) for entry in sparse}

    def takes(self, columns: Columns) -> int | None:
        """The number of ids of a request that has one row, by the shapes of its arrays alone."""
        if columns.shared or columns.batch_size not in (None, 1) or not self._knows_sizes:
            return None
        arrays = columns.arrays
        for name, size, shape in self._blocks:
            array = arrays.get(name)
            if array is None or array.size != size or (array.ndim != 1 and array.shape != shape):
                return None
        ids = 0
        for name, holds_ids in self._lists:
            array = arrays.get(name)
            if array is None or array.ndim != 1:
                return None
            if holds_ids:
                ids += array.size
        return ids

    def check(self, requests: Sequence[Columns]) -> list[ValidRequest] | None:
        """Check requests that `takes` tells the ids of, at least one.

        Returns:
            None where one of them may have to be refused or changed.
        """
        ids = np.zeros(len(requests), dtype=np.int64)
        parts: list[Sequence[Floats] | Sequence[Sparse]] = []
        for entry in self._inputs:
            part = (
                self._sparse(entry, requests, ids)
                if entry.type in SPARSE
                else _finite(_concatenate(requests, entry.name))
            )
            if part is None:
                return None
            if isinstance(part, np.ndarray):
                part = list(part.reshape(len(requests), 1, -1))
            parts.append(part)
        if ids.max() > self._most_ids:
            return None
        return [
            ValidRequest(rows=1, inputs=dict(zip(self._names, inputs, strict=True)))
            for inputs in zip(*parts, strict=True)
        ]

    def _sparse(
        self, entry: InputSignature, requests: Sequence[Columns], ids: npt.NDArray[np.int64]
    ) -> list[Sparse] | None:
        """One input of each; adds the number of its ids to `ids` [R]."""
        lengths = _concatenate(requests, f"{entry.name}.lengths")
        values = _concatenate(requests, f"{entry.name}.values")
        is_signed = lengths.dtype.kind == values.dtype.kind == "i"
        if not is_signed or lengths.min() < 0 or lengths.max() > self._most_ids:
            return None
        by_request = lengths.reshape(len(requests), -1)
        counts = by_request.sum(axis=1)
        sizes = [columns.arrays[f"{entry.name}.values"].size for columns in requests]
        if counts.tolist() != sizes:
            return None
        last = np.repeat(np.tile(self._last_ids[entry.name], len(requests)), lengths)
        longest = self._longest[entry.name]
        is_long = longest is not None and (by_request > longest).any()
        if is_long or ((values < 0) | (values > last)).any():
            return None
        weights = None
        if entry.type == "weighted_sparse":
            name = f"{entry.name}.weights"
            if sizes != [columns.arrays[name].size for columns in requests]:
                return None
            weights = _finite(_concatenate(requests, name))
            if weights is None:
                return None
        ids += counts
        values = values.astype(np.int64 if entry.is_wide else np.int32)
        ends = np.cumsum(counts).tolist()
        return [
            Sparse(
                lengths=own,
                values=values[end - size : end],
                weights=None if weights is None else weights[end - size : end],
            )
            for own, size, end in zip(
                lengths.astype(np.int32).reshape(len(requests), -1, 1), sizes, ends, strict=True
            )
        ]


def _concatenate(requests: Sequence[Columns], name: str) -> npt.NDArray[Any]:
    return np.concatenate([columns.arrays[name] for columns in requests], axis=None)


def _finite(array: npt.NDArray[Any]) -> Floats | None:
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    return floats if np.isfinite(floats).all() else None
