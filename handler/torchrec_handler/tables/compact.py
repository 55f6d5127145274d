"""Pooled lookups of which only rows travel that are needed: of lists that hold ids, each once.

What is empty, as all rows of a request but its first are in what they share (`tables.once`), is
zeros wherever it is looked up. Lists of one id each are the same where their ids are.

Shapes: B rows, F features of one width D, N ids, K lists that travel; list f * B + b is the one of
feature f in row b.
"""

from dataclasses import dataclass, replace

import torch

LEAST_LISTS = 64
MOST_KEPT = 0.75
"""The share of lists up to which it pays to leave the others out."""
PAUSE = 32
"""Lookups until repeated ids are looked for again, where there were few."""


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Lists that travel, and where their rows go."""

    ids: torch.Tensor
    """[K or more]"""
    offsets: torch.Tensor
    """[F * B + 1], of the lists that do not travel empty."""
    weights: torch.Tensor | None
    count: int
    """K"""
    source: torch.Tensor
    """[F * B] the number of each list's row; K where it is empty."""

    def expanded(self, rows: torch.Tensor, features: int) -> torch.Tensor:
        """Rows [K, D] as pooled embeddings [B, F * D]."""
        width = rows.shape[1]
        every = torch.cat((rows, rows.new_zeros(1, width)))
        places = self.source.view(features, -1).T.reshape(-1)
        return every.index_select(0, places).view(-1, features * width)


class Compacting:
    """Finds what need not travel; of one site and rank, whose requests are alike."""

    def __init__(self, features: int) -> None:
        self._features = features
        self._pause = 0

    def __call__(
        self, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> Compact | None:
        """Leave out what can be; None where that is too little."""
        lengths = offsets.diff()
        if lengths.numel() < LEAST_LISTS:
            return None
        full = lengths.nonzero().view(-1)
        count = full.numel()
        source = lengths.new_full((lengths.numel(),), count, dtype=torch.int64)
        source[full] = torch.arange(count)
        plain = Compact(ids=ids, offsets=offsets, weights=weights, count=count, source=source)
        if weights is None and count == ids.numel() and count:
            plain = self._each_once(plain, full)
        return plain if plain.count <= MOST_KEPT * lengths.numel() else None

    def _each_once(self, given: Compact, full: torch.Tensor) -> Compact:
        """Of lists of one id: those of the same feature and id once."""
        if self._pause:
            self._pause -= 1
            return given
        rows = given.source.numel() // self._features
        known, number = torch.unique(given.ids.long() + (full // rows << 32), return_inverse=True)
        if known.numel() > MOST_KEPT * given.count:
            self._pause = PAUSE
            return given
        # Sorted by feature, as lists are; each stands in one of the places that it is for.
        first = torch.empty_like(known).scatter_(0, number, full)
        lengths = torch.zeros_like(given.source)
        lengths[first] = 1
        order = first.argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel())
        source = torch.full_like(given.source, known.numel())
        source[full] = place[number]
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        return replace(
            given,
            ids=(known[order] & 0xFFFFFFFF).to(given.ids.dtype),
            offsets=offsets.to(given.offsets.dtype),
            count=known.numel(),
            source=source,
        )


def kept(found: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Of pooled embeddings [B, F * D] the rows [K, D] of lists that hold ids, in their order."""
    rows = found.shape[0]
    features = (offsets.numel() - 1) // rows
    full = offsets.diff().nonzero().view(-1)
    return found.view(rows * features, -1).index_select(0, full % rows * features + full // rows)
