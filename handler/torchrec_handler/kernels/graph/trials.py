"""Batches that a graph is tried on, and whether it gives what its method gives.

Shapes: B rows, U users, F features, N ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from torchrec_handler.kernels.graph.capture import Batch
from torchrec_handler.kernels.graph.user import Shared


class Trial(NamedTuple):
    """A batch that a method is tried on."""

    rows: int
    batch: Batch
    is_timed: bool = True


def differs(
    expected: Sequence[torch.Tensor],
    received: Sequence[torch.Tensor],
    rows: int,
    tolerance: float,
) -> str | None:
    """How what a graph gives differs from what a method gives.

    Args:
        expected: the method's outputs.
        received: the graph's.
        rows: of the batch.
        tolerance: how far apart two numbers may be, of the largest in its output and at least of 1.
    """
    for wanted, given in zip(expected, received, strict=True):
        if wanted.shape != given.shape or wanted.dtype != given.dtype:
            return (
                f"gives {tuple(given.shape)} {given.dtype} with {rows} rows, "
                f"the module {tuple(wanted.shape)} {wanted.dtype}"
            )
        if not wanted.numel() or torch.equal(wanted, given):
            continue
        if not wanted.is_floating_point():
            return f"gives other {wanted.dtype} than the module with {rows} rows"
        finite = wanted.isfinite()
        if not torch.equal(_beyond(wanted), _beyond(given)):
            return f"is not finite where the module is, with {rows} rows"
        if not finite.any():
            continue
        apart = float((wanted - given)[finite].abs().max())
        allowed = tolerance * max(1.0, float(wanted[finite].abs().max()))
        if apart > allowed:
            return f"is {apart:.2g} off the module with {rows} rows, at most {allowed:.2g} is"
    return None


def _beyond(given: torch.Tensor) -> torch.Tensor:
    """What is no finite number: 1, -1 and 2 for a NaN; 0 for all others."""
    return given.isposinf().int() - given.isneginf().int() + 2 * given.isnan().int()


def share(
    batch: Batch, shared: Shared, firsts: Sequence[int], index: torch.Tensor
) -> tuple[Batch, Batch, Batch]:
    """What a batch would be if its rows shared some inputs.

    Args:
        batch: of B rows.
        shared: input -> which of its features [F], None for all of a dense one.
        firsts: rows whose inputs the users have, U of them.
        index: [B] the user of each row.

    Returns:
        All written out; without what is shared; and what is shared, of U rows.
    """
    rows = len(index)
    chosen = torch.tensor(firsts)
    whole: dict[str, Any] = dict(batch)
    items: dict[str, Any] = dict(batch)
    users: dict[str, Any] = {}
    for name, mask in shared.items():
        if mask is None:
            value: Any = batch[name]
            parts = [value] if isinstance(value, torch.Tensor) else value
            taken = [part[chosen] for part in parts]
            written = [part[index] for part in taken]
            users[name], whole[name] = (
                one[0] if isinstance(value, torch.Tensor) else one for one in (taken, written)
            )
            continue
        tensors = [batch.get(f"{name}.{suffix}") for suffix in ("lengths", "values", "weights")]
        features = len(mask)
        order = torch.arange(features * rows).view(features, rows)
        is_shared = torch.from_numpy(mask).unsqueeze(1)
        written_order = torch.where(is_shared, order[:, chosen][:, index], order)
        put(whole, name, tensors, written_order, written_order >= 0)
        put(items, name, tensors, order, ~is_shared.expand_as(order))
        put(users, name, tensors, order[:, chosen], order[:, chosen] >= 0)
    return whole, items, users


def put(
    batch: dict[str, Any],
    name: str,
    tensors: Sequence[Any],
    order: torch.Tensor,
    kept: torch.Tensor,
) -> None:
    """Put lists into a batch: by their positions [F, B], empty ones where they are not kept."""
    lengths, values, weights = tensors
    lists = values.split(lengths.tolist())
    chosen = [
        (at if keep else None)
        for at, keep in zip(order.reshape(-1).tolist(), kept.reshape(-1).tolist(), strict=True)
    ]
    batch[f"{name}.lengths"] = torch.tensor(
        [0 if at is None else len(lists[at]) for at in chosen], dtype=lengths.dtype
    )
    batch[f"{name}.values"] = torch.cat(
        [values[:0], *(lists[at] for at in chosen if at is not None)]
    )
    if weights is not None:
        of_lists = weights.split(lengths.tolist())
        batch[f"{name}.weights"] = torch.cat(
            [weights[:0], *(of_lists[at] for at in chosen if at is not None)]
        )
