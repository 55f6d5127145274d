"""Sharded collections whose lookups are spread over ranks: a device of a plan is a rank here.

TorchRec's sharded collection has a lookup for each device and calls one after another. On the
leader those of other ranks are asked for, all at once, and its own done meanwhile; a follower does
its own when it is asked. All that is around the lookups, the leader does as TorchRec does it.

Shapes: B rows, F features, D the sum of widths, N ids.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torchrec.distributed.embedding_lookup import InferGroupedPooledEmbeddingsLookup
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.errors import Unusable
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.ahead import Early, Lists, forward_calls
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.compact import Compact, Compacting
from torchrec_handler.tables.exchange import Leader, LookUp
from torchrec_handler.tables.messages import Asked

logger = logging.getLogger(__name__)

SPREAD = "torchrec_handler_spread"
"""What a collection has whose lookups are on several ranks: its `Spread`."""


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
    travels: torch.dtype | None = None
    """The type in which rows travel; None for the one they are looked up in."""
    compacting: Mapping[int, Compacting] = field(default_factory=dict)
    """Rank -> what finds out which rows need not travel, where all have one width."""

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
        site = cls(
            number=number, collection=collection, whole=whole, parts=found, is_pooled=is_pooled
        )
        alike = [rank for rank in found if is_pooled and len(set(site.widths(rank))) == 1]
        return replace(site, compacting={rank: Compacting(site.count(rank)) for rank in alike})

    def width(self, rank: int) -> int:
        """D of what a rank finds."""
        widths = self.widths(rank)
        return sum(widths) if self.is_pooled else widths[0]

    def widths(self, rank: int) -> list[int]:
        """D of each feature that a rank looks up."""
        configs = self.parts[rank].grouped_configs
        return [width for config in configs for width in config.embedding_dims()]

    def count(self, rank: int) -> int:
        """F of what a rank looks up."""
        configs = self.parts[rank].grouped_configs
        return sum(config.num_features() for config in configs)

    def is_weighted(self, rank: int) -> bool:
        """Whether a rank's lookups read weights."""
        return any(config.is_weighted for config in self.parts[rank].grouped_configs)

    def features(self, rank: int) -> list[str]:
        """F names of what a rank looks up, in order."""
        configs = self.parts[rank].grouped_configs
        return [name for config in configs for name in config.feature_names()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """A collection on the leader, and who is asked for the rest of it."""

    leader: Leader
    sites: Sequence[Site]


def spread_of(collection: Any) -> Spread | None:
    """How a collection is spread over ranks; None where it is not."""
    found: Spread | None = vars(collection).get(SPREAD)
    return found


def sites(collections: Collections) -> list[Site]:
    """The sites of a sharded model, in the same order on every rank."""
    wholes = [
        (one.module, whole)
        for one in collections.of_kind("sharded")
        for whole in one.module._lookups  # noqa: SLF001  it shows them in no other way
    ]
    return [Site.of(number, *each) for number, each in enumerate(wholes)]


def ask_others(found: Sequence[Site], leader: Leader, travels: torch.dtype) -> None:
    """Let the sites of the leader's model ask the other ranks.

    Args:
        found: of all collections.
        leader: asks.
        travels: the type in which rows travel that are looked up in float32.
    """
    found = [replace(site, travels=travels) for site in found]
    for site in found:
        own = [other for other in found if other.collection is site.collection]
        setattr(site.collection, SPREAD, Spread(leader=leader, sites=own))
        site.whole.forward = partial(_forward, site, leader)


def own_lookups(found: Sequence[Site], ranks: Ranks) -> dict[int, LookUp]:
    """Number -> what a follower looks up where it is asked."""
    return {site.number: _own(site, ranks.own) for site in found if ranks.own in site.parts}


def _forward(site: Site, leader: Leader, given: Any) -> list[torch.Tensor]:
    """What TorchRec's module of all ranks gives: of each what it found."""
    features: Sequence[KeyedJaggedTensor] = given.features
    own = leader.ranks.own
    found = look_up_on_all(
        site, leader, _lists(site, features), lambda: site.parts[own].forward(features[own])
    )
    spread = spread_of(site.collection)
    if spread and site.number == spread.sites[-1].number:
        ask_ahead(site.collection, partial(_distributed, spread))
    every: Sequence[int] = [*site.parts] if site.is_pooled else range(len(features))
    return [found[rank] if rank in found else torch.empty(0) for rank in every]


def _lists(site: Site, features: Sequence[KeyedJaggedTensor]) -> dict[int, Lists]:
    """Rank -> what is looked up there."""
    return {
        rank: (features[rank].values(), features[rank].offsets(), features[rank].weights_or_none())
        for rank in site.parts
    }


def _distributed(spread: Spread, features: KeyedJaggedTensor) -> list[dict[int, Lists]]:
    """What each rank looks up of features, site by site, as TorchRec brings them there."""
    ahead = forward_calls()
    given = ahead.distribute(features) if ahead and ahead.distribute else ()
    return [_lists(site, part.features) for site, part in zip(spread.sites, given, strict=True)]


def ask_ahead(
    collection: Any, by_rank: Callable[[KeyedJaggedTensor], Sequence[Mapping[int, Lists]]]
) -> None:
    """Ask other ranks for what the next forward call is likely to look up in a collection.

    Args:
        collection: that was looked up.
        by_rank: gives what each rank looks up of features, site by site.

    Raises:
        Unusable: a rank is gone.
    """
    ahead, spread = forward_calls(), spread_of(collection)
    if ahead is None or spread is None or any(ahead.keeps(site.number) for site in spread.sites):
        return
    own = spread.leader.ranks.own
    try:
        features = ahead.next_features()
        if features is None:
            return
        for site, lists in zip(spread.sites, by_rank(features), strict=True):
            others = {rank: each for rank, each in lists.items() if rank != own}
            asked = _all_asked(site, others)
            wait = spread.leader.ask([each for each, _ in asked])
            ahead.keep(site.number, Early(lists=others, asked=asked, wait=wait))
    except Unusable:
        raise
    except Exception:  # what is wrong with the next call, it meets by itself
        logger.debug("the next forward call's lookups were not asked for", exc_info=True)


def look_up_on_all(
    site: Site, leader: Leader, lists: Mapping[int, Lists], own: Callable[[], torch.Tensor]
) -> dict[int, torch.Tensor]:
    """What each rank of a site finds.

    Args:
        site: on the leader.
        leader: asks the other ranks.
        lists: rank -> what is looked up there.
        own: looks up what is here.

    Returns:
        Rank -> [B, D], or of sequences [N, D].
    """
    here = leader.ranks.own
    others = {rank: each for rank, each in lists.items() if rank != here}
    ahead = forward_calls()
    early = ahead.take(site.number, others) if ahead else None
    asked = early.asked if early else _all_asked(site, others)
    mine, theirs = leader.look_up(
        [each for each, _ in asked],
        own if here in lists else lambda: None,
        early.wait if early else None,
    )
    found = {
        each.rank: _rows(site, each.rank, rows, compact)
        for (each, compact), rows in zip(asked, theirs, strict=True)
    }
    return found if mine is None else {**found, here: mine}


def _all_asked(site: Site, lists: Mapping[int, Lists]) -> list[tuple[Asked, Compact | None]]:
    return [_asked(site, rank, *each) for rank, each in lists.items()]


def _asked(
    site: Site, rank: int, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[Asked, Compact | None]:
    dtype = site.parts[rank].output_dtype
    weights = weights if site.is_weighted(rank) else None
    compact = site.compacting[rank](ids, offsets, weights) if rank in site.compacting else None
    if compact:
        ids, offsets = compact.ids, compact.offsets
        shape = (compact.count, site.widths(rank)[0])
    elif site.is_pooled:
        shape = ((offsets.numel() - 1) // site.count(rank), site.width(rank))
    else:
        shape = (ids.numel(), site.width(rank))
    asked = Asked(
        rank=rank,
        site=site.number,
        ids=ids,
        offsets=offsets,
        weights=weights,
        shape=shape,
        dtype=site.travels if site.travels and dtype == torch.float32 else dtype,
        is_compact=compact is not None,
    )
    return asked, compact


def _rows(site: Site, rank: int, rows: torch.Tensor, compact: Compact | None) -> torch.Tensor:
    rows = rows.to(site.parts[rank].output_dtype)
    return compact.expanded(rows, site.count(rank)) if compact else rows


def _own(site: Site, rank: int) -> LookUp:
    part, names = site.parts[rank], site.features(rank)
    forward: Callable[[KeyedJaggedTensor], torch.Tensor] = part.forward

    def look_up(
        ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return forward(KeyedJaggedTensor(keys=names, values=ids, offsets=offsets, weights=weights))

    return look_up
