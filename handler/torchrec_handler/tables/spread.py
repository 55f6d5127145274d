"""Sharded collections whose lookups are spread over ranks: a device of a plan is a rank here.

TorchRec's sharded collection has a lookup for each device and calls one after another. On the
leader those of other ranks are asked for, all at once, and its own done meanwhile; a follower does
its own when it is asked. All that is around the lookups, the leader does as TorchRec does it.

Shapes: B rows, F features, D the sum of widths, N ids.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torchrec.distributed.embedding_lookup import InferGroupedPooledEmbeddingsLookup
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.exchange import Asked, Leader, LookUp

SPREAD = "spread_over"
"""What a collection has whose lookups are on several ranks: how many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """The lookups of one sharding type of a collection."""

    number: int
    collection: Any
    whole: Any
    """TorchRec's module of all of them."""
    parts: Mapping[int, Any]
    """Rank -> TorchRec's module of its own, where it has tables."""
    is_pooled: bool

    @classmethod
    def of(cls, number: int, collection: Any, whole: Any) -> "Site":
        """Look at TorchRec's module."""
        parts = whole._embedding_lookups_per_rank  # noqa: SLF001  it shows them in no other way
        is_pooled = isinstance(whole, InferGroupedPooledEmbeddingsLookup)
        ranks: Sequence[int] = range(len(parts))
        if is_pooled:
            ranks = [rank for rank, is_empty in enumerate(whole._is_empty_rank) if not is_empty]  # noqa: SLF001
        found = {
            rank: part for rank, part in zip(ranks, parts, strict=True) if part.grouped_configs
        }
        return cls(
            number=number, collection=collection, whole=whole, parts=found, is_pooled=is_pooled
        )

    def width(self, rank: int) -> int:
        """D of what a rank finds."""
        widths = [config.embedding_dims() for config in self.parts[rank].grouped_configs]
        return sum(map(sum, widths)) if self.is_pooled else widths[0][0]

    def features(self, rank: int) -> list[str]:
        """F names of what a rank looks up, in order."""
        configs = self.parts[rank].grouped_configs
        return [name for config in configs for name in config.feature_names()]


def sites(collections: Collections) -> list[Site]:
    """The sites of a sharded model, in the same order on every rank."""
    wholes = [
        (one.module, whole)
        for one in collections.of_kind("sharded")
        for whole in one.module._lookups  # noqa: SLF001  it shows them in no other way
    ]
    return [Site.of(number, *each) for number, each in enumerate(wholes)]


def ask_others(found: Sequence[Site], leader: Leader) -> None:
    """Let the sites of the leader's model ask the other ranks."""
    for site in found:
        setattr(site.collection, SPREAD, leader.ranks.size)
        site.whole.forward = partial(_forward, site, leader)


def own_lookups(found: Sequence[Site], ranks: Ranks) -> dict[int, LookUp]:
    """Number -> what a follower looks up where it is asked."""
    return {site.number: _own(site, ranks.own) for site in found if ranks.own in site.parts}


def _forward(site: Site, leader: Leader, given: Any) -> list[torch.Tensor]:
    """What TorchRec's module of all ranks gives: of each what it found."""
    features: Sequence[KeyedJaggedTensor] = given.features
    own = leader.ranks.own
    asked = [
        _asked(site, rank, features[rank])
        for rank in site.parts
        if rank != own and features[rank].lengths().numel()
    ]
    mine, theirs = leader.look_up(
        asked, lambda: site.parts[own].forward(features[own]) if own in site.parts else None
    )
    answers = {each.rank: rows for each, rows in zip(asked, theirs, strict=True)}
    answers |= {} if mine is None else {own: mine}
    nothing = torch.empty(0)
    every: Sequence[int] = [*site.parts] if site.is_pooled else range(len(features))
    return [
        answers[rank]
        if rank in answers
        else nothing.new_empty((0, site.width(rank)) if rank in site.parts else (0,))
        for rank in every
    ]


def _asked(site: Site, rank: int, features: KeyedJaggedTensor) -> Asked:
    offsets, ids = features.offsets(), features.values()
    rows = (offsets.numel() - 1) // len(site.features(rank)) if site.is_pooled else ids.numel()
    return Asked(
        rank=rank,
        site=site.number,
        ids=ids,
        offsets=offsets,
        weights=features.weights_or_none(),
        shape=(rows, site.width(rank)),
        dtype=site.parts[rank].output_dtype,
    )


def _own(site: Site, rank: int) -> LookUp:
    part, names = site.parts[rank], site.features(rank)
    forward: Callable[[KeyedJaggedTensor], torch.Tensor] = part.forward

    def look_up(
        ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return forward(KeyedJaggedTensor(keys=names, values=ids, offsets=offsets, weights=weights))

    return look_up
