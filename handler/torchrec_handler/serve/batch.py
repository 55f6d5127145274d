"""Many requests into one forward call: TorchRec's Batching.cpp, vectorised.

Sparse inputs are combined feature by feature, the requests' rows in order inside each feature;
dense and embedding inputs row by row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchrec.inference.modules import BatchingMetadata

from torchrec_handler.serve.request import Sparse, ValidRequest
from torchrec_handler.serve.validate import segments

Inputs = dict[str, torch.Tensor | list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one forward call gets, and whose rows they are."""

    inputs: Inputs
    rows: tuple[int, ...]
    """Rows of each request, in order; `split` cuts the result by it."""


def combine(
    requests: Sequence[ValidRequest],
    batching: Mapping[str, BatchingMetadata],
    device: torch.device,
) -> Batch:
    """Combine requests into the input dict of a predict module.

    Args:
        requests: at least one.
        batching: input name -> type, device and what to pin.
        device: the worker's, for inputs whose metadata names a kind of device only.

    Returns:
        dense: `name` [B, F] float32. sparse: `name.lengths` [F * B] int32, `name.values` [N]
        int32. weighted_sparse: also `name.weights` [N] float32. embedding: `name`, a list of F
        tensors [B, D] float32. B is the sum of the requests' rows.
    """
    inputs: Inputs = {}
    for name, entry in batching.items():
        parts = [request.inputs[name] for request in requests]
        target = _Target(entry, device)
        if entry.type == "dense":
            inputs[name] = target.put("", _concatenate(parts))
        elif entry.type == "embedding":
            block = target.put("", _concatenate(parts))
            inputs[name] = list(block.unbind(dim=1))
        else:
            sparse = combine_sparse(parts)
            inputs[f"{name}.lengths"] = target.put("lengths", sparse.lengths.reshape(-1))
            inputs[f"{name}.values"] = target.put("values", sparse.values)
            if sparse.weights is not None:
                inputs[f"{name}.weights"] = target.put("weights", sparse.weights)
    return Batch(inputs=inputs, rows=tuple(request.rows for request in requests))


def combine_sparse(parts: Sequence[Any]) -> Sparse:
    """Combine one sparse input of several requests.

    Args:
        parts: `Sparse`, each with lengths [F, B of its request].

    Returns:
        Lengths [F, B]; the ids of feature 0 of all requests, then of feature 1, and so on.
    """
    if len(parts) == 1:
        only: Sparse = parts[0]
        return only
    lengths = np.concatenate([part.lengths for part in parts], axis=1)
    values = np.concatenate([part.values for part in parts])
    # How many ids each request has in each feature, [requests, F], in the order they lie in.
    counts = np.stack([part.lengths.sum(axis=1, dtype=np.int64) for part in parts])
    ends = np.cumsum(counts).reshape(counts.shape)
    index = segments((ends - counts).T.reshape(-1), counts.T.reshape(-1))
    weighted = parts[0].weights is not None
    weights = np.concatenate([part.weights for part in parts])[index] if weighted else None
    return Sparse(lengths=lengths, values=values[index], weights=weights)


def cut(requests: Sequence[ValidRequest], most: int) -> Iterator[list[tuple[int, ValidRequest]]]:
    """Cut a list of requests into forward calls of at most `most` rows.

    At request boundaries where that can be had; a request that is larger alone is cut by rows.

    Yields:
        Pairs of a request's position and the request, or a piece of it.
    """
    call: list[tuple[int, ValidRequest]] = []
    rows = 0
    for position, request in enumerate(requests):
        if call and rows + request.rows > most:
            yield call
            call, rows = [], 0
        start = 0
        while request.rows - start > most:
            yield [(position, take_rows(request, start, start + most))]
            start += most
        rest = take_rows(request, start, request.rows) if start else request
        call.append((position, rest))
        rows += rest.rows
    if call:
        yield call


def take_rows(request: ValidRequest, start: int, stop: int) -> ValidRequest:
    """The rows `start` to `stop` of a request, as a request."""
    inputs: dict[str, Any] = {}
    for name, value in request.inputs.items():
        if not isinstance(value, Sparse):
            inputs[name] = value[start:stop]
            continue
        ends = np.cumsum(value.lengths, dtype=np.int64).reshape(value.lengths.shape)
        lengths = value.lengths[:, start:stop]
        starts = ends[:, start] - value.lengths[:, start]
        index = segments(starts, lengths.sum(axis=1, dtype=np.int64))
        weights = None if value.weights is None else value.weights[index]
        inputs[name] = Sparse(lengths=lengths, values=value.values[index], weights=weights)
    return ValidRequest(rows=stop - start, inputs=inputs)


class _Target:
    """Where one input goes: pageable or pinned host memory, then its device."""

    def __init__(self, entry: BatchingMetadata, worker: torch.device) -> None:
        device = torch.device(entry.device)
        self._device = worker if device.type == worker.type else device
        self._pinned = frozenset(entry.pinned) if self._device.type == "cuda" else frozenset()

    def put(self, suffix: str, array: npt.NDArray[Any]) -> torch.Tensor:
        # What all rows share is a read-only view of one; a model may write to its inputs.
        tensor = torch.from_numpy(array if array.flags.carray else array.copy())
        if suffix in self._pinned:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _concatenate(parts: Sequence[Any]) -> npt.NDArray[np.float32]:
    block: npt.NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return block
