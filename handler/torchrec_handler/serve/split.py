"""One result back into the answers of its requests: TorchRec's ResultSplit.cpp."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrec_handler.errors import PredictError
from torchrec_handler.serve.predict import HostArray, HostResult

Answer = dict[str, Any]
"""Output name -> what the answer's format writes: arrays, lists of arrays, or values and mask."""


def split(
    result: HostResult, rows: Sequence[int], result_metadata: str
) -> list[dict[str, tuple[HostArray, ...]]]:
    """Cut a result by the rows of its requests.

    A tensor of k x B values holds k values a row. Masks go to every request whole.

    Args:
        result: output name -> tensors, the first axis B (or k x B) long.
        rows: rows of each request, in the order they were combined; their sum is B.
        result_metadata: one of TorchRec's result types.

    Raises:
        PredictError: a tensor's length is not a multiple of B.
    """
    ends = np.cumsum(rows)
    total = int(ends[-1])
    masked = result_metadata == "dict_with_mask_tensor"
    for name, tensors in result.items():
        for tensor in tensors[:1] if masked else tensors:
            if tensor.shape[0] % total:
                message = (
                    f"output {name!r}: received shape {tensor.shape}, "
                    f"expected a first axis of k x {total} rows"
                )
                raise PredictError(message)
    return [
        {
            name: tuple(
                tensor if masked and part else _cut(tensor, int(end) - count, int(end), total)
                for part, tensor in enumerate(tensors)
            )
            for name, tensors in result.items()
        }
        for count, end in zip(rows, ends, strict=True)
    ]


def join(pieces: Sequence[dict[str, tuple[HostArray, ...]]], result_metadata: str) -> HostResult:
    """Put the pieces of a request that was cut by rows together again."""
    if len(pieces) == 1:
        return pieces[0]
    masked = result_metadata == "dict_with_mask_tensor"
    return {
        name: tuple(
            pieces[0][name][part]
            if masked and part
            else np.concatenate([piece[name][part] for piece in pieces])
            for part in range(len(pieces[0][name]))
        )
        for name in pieces[0]
    }


def answer(result: HostResult, result_metadata: str) -> Answer:
    """One request's result in the shape of its answer."""
    if result_metadata == "dict_of_tensor":
        return {name: tensors[0] for name, tensors in result.items()}
    if result_metadata == "dict_of_tensors":
        return {name: list(tensors) for name, tensors in result.items()}
    return {name: {"values": values, "mask": mask} for name, (values, mask) in result.items()}


def _cut(tensor: HostArray, start: int, stop: int, total: int) -> HostArray:
    factor = tensor.shape[0] // total
    return tensor[start * factor : stop * factor]
