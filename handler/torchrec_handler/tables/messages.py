"""What ranks send one another: commands, and answers to them.

A command is a head and, for a lookup or a call, a body; an answer is what went wrong, if anything
did, and rows of which the one that asked knows how many they are.

Shapes: B rows, F features, D the sum of widths, N ids.
"""

from dataclasses import dataclass

import torch

IDLE, LOOK_UP, CALL, STOP = range(4)
HEAD = 9
"""Numbers of a command: which one, site, ids, offsets, bytes of each, whether there are weights,
bytes of the rows, their type's place in `ROW_TYPES`, whether rows of empty lists are left out. Of
a call only which one, and its bytes.
"""
ROW_TYPES = (torch.float32, torch.float16, torch.bfloat16)
SAID = 512
"""Bytes of an answer before its rows: the length of what went wrong, and that."""
LENGTH = 8
INTEGERS = {4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one rank is to look up."""

    rank: int
    site: int
    """Which lookup of the model, the same number on every rank."""
    ids: torch.Tensor
    """[N] int32 or int64"""
    offsets: torch.Tensor
    """[F * B + 1]"""
    weights: torch.Tensor | None
    """[N]"""
    shape: tuple[int, int]
    """Of the rows."""
    dtype: torch.dtype
    """Of the rows, as they travel."""
    is_compact: bool = False
    """Whether rows of empty lists are left out."""


def packed(asked: Asked, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Head and body of a command; the larger of the integers' types is that of both."""
    ids, offsets, weights = asked.ids, asked.offsets, asked.weights
    kind = torch.promote_types(ids.dtype, offsets.dtype)
    numbers = [ids.to(kind), offsets.to(kind), *([] if weights is None else [weights.float()])]
    is_weighted = int(weights is not None)
    counts = [ids.numel(), offsets.numel(), kind.itemsize, is_weighted, size]
    form = [ROW_TYPES.index(asked.dtype), int(asked.is_compact)]
    head = torch.tensor([LOOK_UP, asked.site, *counts, *form])
    return head, torch.cat([part.contiguous().view(torch.uint8) for part in numbers])


def unpacked(
    body: torch.Tensor, ids: int, offsets: int, each: int, is_weighted: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What a body holds: ids, offsets and weights."""
    found, starts, weights = body.tensor_split([ids * each, (ids + offsets) * each])
    kind = INTEGERS[each]
    return (
        found.view(kind),
        starts.view(kind),
        weights.view(torch.float32) if is_weighted else None,
    )


def answer_of(size: int) -> torch.Tensor:
    """An empty answer with room for so many bytes of rows."""
    answer = torch.empty(SAID + size, dtype=torch.uint8)
    answer[:LENGTH] = 0
    return answer


def rows_of(asked: Asked, answer: torch.Tensor) -> torch.Tensor:
    """The rows of an answer.

    Raises:
        RuntimeError: what went wrong on the other rank.
    """
    if length := int(answer[:LENGTH].view(torch.int64)):
        text = answer[LENGTH : LENGTH + length].numpy().tobytes().decode(errors="replace")
        message = f"rank {asked.rank}: {text}"
        raise RuntimeError(message)
    return answer[SAID:].view(asked.dtype).view(asked.shape)
