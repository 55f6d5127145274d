"""One prediction an instance: `predictions`, as KServe v1, TensorFlow Serving and Vertex AI answer.

Beside TorchRec's outputs by name. What an output of ids gives each instance is not told by its
values alone, so such an answer has none.

Letters in shapes: B rows.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from torchrec_handler.archive.format import OutputSplit

PREDICTIONS = "predictions"


def add(
    answer: Mapping[str, Any], rows: int, splits: Mapping[str, Sequence[OutputSplit]]
) -> Mapping[str, Any]:
    """Put predictions beside the outputs.

    A single output's are its values, k of a row as a list; several outputs' are objects.

    Args:
        answer: output name -> array, or list of arrays.
        rows: B
        splits: output name -> how each of its tensors is cut.

    Returns:
        The answer, as it is where a tensor is not cut by rows or an output has the same name.
    """
    if not answer or PREDICTIONS in answer:
        return answer
    columns: list[list[Any]] = []
    for name, value in answer.items():
        column = _column(value, rows, splits.get(name, ()))
        if column is None:
            return answer
        columns.append(column)
    if len(columns) == 1:
        return {**answer, PREDICTIONS: columns[0]}
    objects = map(dict, map(zip, repeat(tuple(answer)), zip(*columns, strict=True)))
    return {**answer, PREDICTIONS: list(objects)}


def _column(value: Any, rows: int, splits: Sequence[OutputSplit]) -> list[Any] | None:
    """An output's part of each row, [B]; None where it is not known to be cut by rows."""
    tensors = value if isinstance(value, list) else [value]
    if len(splits) != len(tensors):
        return None
    parts = []
    for tensor, split in zip(tensors, splits, strict=True):
        is_by_rows = all(count.input is None for count in split.counts)
        if not is_by_rows or not isinstance(tensor, np.ndarray):
            return None
        factor = split.counts[0].factor
        shape = (rows, *tensor.shape[1:]) if factor == 1 else (rows, factor, *tensor.shape[1:])
        parts.append(tensor.reshape(shape).tolist())
    return parts[0] if value is not tensors else list(map(list, zip(*parts, strict=True)))
