"""Requests that give some inputs once for all their rows: a batch of users beside their candidates.

For methods that compute what depends on the user alone once (`kernels.graph.user`).
Shapes: B rows, U users, R requests, F features, N ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchrec.inference.modules import BatchingMetadata

from torchrec_handler.kernels.graph.user import Shared
from torchrec_handler.serve.batch import Inputs, combine, take_rows
from torchrec_handler.serve.request import Mask, Sparse, ValidRequest

LEAST_ROWS = 4
"""With fewer rows a user, two batches cost more than they save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserBatch:
    """What one forward call gets."""

    items: Inputs
    """Of B rows; empty for what is shared as a whole."""
    users: Inputs
    """Of U rows: only what is shared."""
    index: torch.Tensor
    """[B] the user of each row."""
    rows: tuple[int, ...]
    """Rows of each request, in order."""


def find_shared(requests: Sequence[ValidRequest]) -> Shared:
    """What the largest request gives once; nothing where that would not pay."""
    largest = max(requests, key=lambda request: request.rows)
    shared = _shared(largest) if largest.rows >= LEAST_ROWS else {}
    if not shared:
        return {}
    rows = sum(request.rows for request in requests)
    users = sum(1 if _gives(request, shared) else request.rows for request in requests)
    return shared if rows >= LEAST_ROWS * users else {}


def combine_users(
    requests: Sequence[ValidRequest],
    batching: Mapping[str, BatchingMetadata],
    device: torch.device,
    shared: Shared,
) -> UserBatch:
    """Combine requests; who does not give once what is shared has a user a row.

    Args:
        requests: at least one.
        batching: input name -> type, device and what to pin.
        device: the worker's.
        shared: what `find_shared` found.
    """
    once = [_gives(request, shared) for request in requests]
    rows = [request.rows for request in requests]
    firsts = [
        take_rows(request, 0, 1) if is_once else request
        for request, is_once in zip(requests, once, strict=True)
    ]
    users = combine(firsts, {name: batching[name] for name in shared}, device)
    whole = {name for name, mask in shared.items() if mask is None or mask.all()}
    others = [_without(request, shared, whole) for request in requests]
    rest = {name: entry for name, entry in batching.items() if name not in whole}
    found = combine(others, rest, device).inputs if rest else {}
    items: Inputs = {}
    for name in batching:
        # In the order of the inputs, which is that of a captured method.
        of_input = users.inputs if name in whole else found
        for key, value in of_input.items():
            if key == name or key.rpartition(".")[0] == name:
                items[key] = _empty(value) if name in whole else value
    return UserBatch(items=items, users=users.inputs, index=_index(rows, once), rows=tuple(rows))


def _index(rows: Sequence[int], once: Sequence[bool]) -> torch.Tensor:
    counts = np.array([1 if is_once else count for count, is_once in zip(rows, once, strict=True)])
    repeats = np.repeat(
        [count if is_once else 1 for count, is_once in zip(rows, once, strict=True)], counts
    )
    return torch.from_numpy(np.repeat(np.arange(counts.sum()), repeats))


def _shared(request: ValidRequest) -> Shared:
    """What a request gives once."""
    found: dict[str, Mask | None] = {}
    for name, value in request.inputs.items():
        if isinstance(value, Sparse):
            if value.shared is not None and value.shared.any():
                # What no row has an id of is alike in all rows, too.
                found[name] = value.shared | ~value.lengths.any(axis=1)
        elif request.rows > 1 and value.strides[0] == 0:
            found[name] = None
    return found


def _gives(request: ValidRequest, shared: Shared) -> bool:
    """Whether a request gives that once, and maybe more."""
    own = _shared(request) if request.rows > 1 else {}
    return request.rows == 1 or all(
        name in own and (mask is None or not (mask & ~_mask(own[name])).any())
        for name, mask in shared.items()
    )


def _mask(mask: Mask | None) -> Any:
    return np.True_ if mask is None else mask


def _without(request: ValidRequest, shared: Shared, whole: set[str]) -> ValidRequest:
    """A request of other lists only, where an input is shared in part."""
    inputs: dict[str, Any] = {}
    for name, value in request.inputs.items():
        mask = shared.get(name)
        if name in whole:
            continue
        if isinstance(value, Sparse) and mask is not None:
            inputs[name] = _emptied(value, mask)
        else:
            inputs[name] = value
    return request._replace(inputs=inputs)


def _emptied(sparse: Sparse, mask: Mask) -> Sparse:
    """Without the lists of some features [F]."""
    kept = np.repeat(~mask, sparse.lengths.sum(axis=1))
    lengths = sparse.lengths * ~mask[:, None]
    shared: npt.NDArray[np.bool_] | None = sparse.shared
    if shared is not None:
        shared = shared & ~mask
        shared = shared if shared.any() else None
    return sparse._replace(
        lengths=lengths,
        values=sparse.values[kept],
        weights=None if sparse.weights is None else sparse.weights[kept],
        shared=shared,
    )


def _empty(value: Any) -> Any:
    return [part[:0] for part in value] if isinstance(value, list) else value[:0]
