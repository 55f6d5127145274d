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

from torchrec_handler.serve.request import Ids, Mask, Sparse, ValidRequest
from torchrec_handler.tables.once import SharedInput

# Looking shared ids up once has costs of its own, here in lookups of an id that it must save.
CALL_COST = 50_000
"""Of a forward call."""
RUN_COST = 1_500
"""Of a run of features that a request shares, whose pooled rows are copied as one block."""
LIST_COST = 4
"""Of a list that is not looked up."""

Inputs = dict[str, torch.Tensor | list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one forward call gets, and whose rows they are."""

    inputs: Inputs
    rows: tuple[int, ...]
    """Rows of each request, in order; `split` cuts the result by it."""
    shared: Sequence[SharedInput]
    """Sparse inputs whose shared ids are worth being looked up once."""


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
    if len(requests) == 1 and requests[0].requests > 1:
        # A model may write to its inputs, and each of these may be tried again.
        requests = [_copied(requests[0])]
    inputs: Inputs = {}
    shared: list[SharedInput] = []
    rows = np.array([request.rows for request in requests])
    for name, entry in batching.items():
        parts: list[Any] = [request.inputs[name] for request in requests]
        target = _Target(entry, device)
        if entry.type == "dense":
            inputs[name] = target.put("", _concatenate(parts))
        elif entry.type == "embedding":
            block = target.put("", _concatenate(parts))
            inputs[name] = list(block.unbind(dim=1))
        else:
            masks = _masks(parts)
            combined = _combine(parts, rows, masks)
            tensors = target.put_sparse(combined)
            inputs.update({f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()})
            saved = combined.values.size - sum(part.values.size for part in parts)
            if masks is not None and target.is_cpu and _pays(saved, rows, masks):
                shared.append(SharedInput(rows=rows, shared=masks, **tensors))
    return Batch(inputs=inputs, rows=tuple(rows.tolist()), shared=shared)


def _copied(request: ValidRequest) -> ValidRequest:
    inputs: dict[str, Any] = {}
    for name, value in request.inputs.items():
        if isinstance(value, Sparse):
            parts: list[Any] = [None if part is None else part.copy() for part in value]
            inputs[name] = Sparse(*parts)
        else:
            inputs[name] = value.copy()
    return request._replace(inputs=inputs)


def _masks(parts: Sequence[Sparse]) -> Mask | None:
    """What each request shares, [R, F]; None for nothing."""
    if all(part.shared is None for part in parts):
        return None
    nothing = np.zeros(len(parts[0].lengths), np.bool_)
    return np.stack([nothing if part.shared is None else part.shared for part in parts])


def _combine(parts: Sequence[Sparse], rows: npt.NDArray[np.int64], masks: Mask | None) -> Sparse:
    """Combine one sparse input of R requests.

    Args:
        parts: each with lengths [F, B of its request].
        rows: [R] of each request.
        masks: [R, F] what each request shares; None for nothing.

    Returns:
        Lengths [F, B]; the ids of feature 0 of all requests, then of feature 1, and so on. What
        rows share is in each of them.

    Raises:
        ValueError: requests of different numbers of features, where the signature leaves it open.
    """
    if len(parts) == 1 and masks is None:
        return parts[0]
    (features,) = {len(part.lengths) for part in parts}
    firsts = np.repeat(np.cumsum(rows) - rows, rows)
    sources = np.arange(firsts.size) - firsts
    if masks is not None:
        sources = np.where(np.repeat(masks.T, rows, axis=1), 0, sources)
    # Lists lie request by request, in each feature by feature, in each row by row.
    lists = firsts * features + np.arange(features)[:, None] * np.repeat(rows, rows) + sources
    weights = [part.weights for part in parts if part.weights is not None]
    return _take(
        lists,
        np.concatenate([part.lengths.reshape(-1) for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate(weights) if weights else None,
    )


def _pays(saved: int, rows: npt.NDArray[np.int64], masks: Mask) -> bool:
    """Whether looking shared ids up once costs less than looking up as many ids as it saves."""
    lists = masks.sum(axis=1) @ (rows - 1)
    runs = np.count_nonzero(np.diff(masks, axis=1, prepend=False, append=False)) // 2
    return bool(saved > CALL_COST + RUN_COST * runs + LIST_COST * lists)


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
    """The rows `start` to `stop` of a request, as a request; of several, as many."""
    inputs: dict[str, Any] = {}
    for name, value in request.inputs.items():
        if not isinstance(value, Sparse):
            inputs[name] = value[start:stop]
            continue
        features, rows = value.lengths.shape
        lists = np.arange(features)[:, None] * rows + np.arange(start, stop)
        if value.shared is not None:
            lists[value.shared, 0] -= start
        taken = _take(lists, value.lengths.reshape(-1), value.values, value.weights)
        inputs[name] = taken._replace(shared=value.shared)
    requests = stop - start if request.requests > 1 else 1
    return ValidRequest(rows=stop - start, inputs=inputs, requests=requests)


def apart(request: ValidRequest) -> list[ValidRequest]:
    """Each of the requests that it holds, as such."""
    if request.requests == 1:
        return [request]
    return [take_rows(request, row, row + 1) for row in range(request.rows)]


def _take(
    lists: npt.NDArray[np.int64],
    lengths: Ids,
    values: Ids,
    weights: npt.NDArray[np.float32] | None,
) -> Sparse:
    """Lists of ids by their positions, one behind another.

    Args:
        lists: [F, B], any of them more than once.
        lengths: [lists]
        values: [N]
        weights: [N]
    """
    taken = torch.ops.fbgemm.permute_1D_sparse_data(
        torch.from_numpy(lists.reshape(-1).astype(np.int32)),
        torch.from_numpy(lengths),
        torch.from_numpy(values),
        None if weights is None else torch.from_numpy(weights),
    )
    taken_lengths, taken_values, taken_weights = taken
    return Sparse(
        lengths=taken_lengths.numpy().reshape(lists.shape),
        values=taken_values.numpy(),
        weights=None if weights is None else taken_weights.numpy(),
    )


class _Target:
    """Where one input goes: pageable or pinned host memory, then its device."""

    def __init__(self, entry: BatchingMetadata, worker: torch.device) -> None:
        device = torch.device(entry.device)
        self._device = worker if device.type == worker.type else device
        self.is_cpu = self._device.type == "cpu"
        self._pinned = frozenset(entry.pinned) if self._device.type == "cuda" else frozenset()

    def put(self, suffix: str, array: npt.NDArray[Any]) -> torch.Tensor:
        # What all rows share is a read-only view of one; a model may write to its inputs.
        tensor = torch.from_numpy(array if array.flags.carray else array.copy())
        if suffix in self._pinned:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def put_sparse(self, sparse: Sparse) -> dict[str, torch.Tensor]:
        """Its lengths [F * B], values and weights, by these names."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "lengths": sparse.lengths.reshape(-1),
            "values": sparse.values,
        }
        if sparse.weights is not None:
            arrays["weights"] = sparse.weights
        return {suffix: self.put(suffix, array) for suffix, array in arrays.items()}


def _concatenate(parts: Sequence[Any]) -> npt.NDArray[np.float32]:
    block: npt.NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return block
