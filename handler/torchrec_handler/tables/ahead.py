"""Lookups on other ranks that are asked for before the model does: a batch's next forward call's.

A batch of more rows than one forward call takes is computed in several. What a call looks up is up
to the model's code, but most models look their inputs up as they are given: where one call did,
those of the next are asked for at once, so that other ranks look up, and their rows arrive, while
this one computes its dense part. What was asked for serves nothing but a lookup of the very same
lists; without one it is dropped, and after a few of these no more is asked for.

Shapes: B rows, F features, N ids.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Lists = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Ids [N], offsets [F * B + 1] and weights [N]."""
Inputs = Mapping[str, Any]

MOST_DROPPED = 3
"""Batches one after another whose guesses were dropped, until there is a pause."""
PAUSE = 100
"""Batches."""


@dataclass(frozen=True, kw_only=True)
class Early:
    """What other ranks were asked for early."""

    lists: Mapping[int, Lists]
    """Other rank -> what is looked up there."""
    asked: Sequence[Any]
    """In what form."""
    wait: Callable[[], Any]
    """Gives the answers."""

    def is_of(self, lists: Mapping[int, Lists]) -> bool:
        """Whether it was asked for the same lists."""
        return lists.keys() == self.lists.keys() and all(
            _equal(one, other)
            for rank in lists
            for one, other in zip(lists[rank], self.lists[rank], strict=True)
        )


class Ahead:
    """The forward calls of batches, of which the next one is known; for one thread."""

    def __init__(self) -> None:
        self.given: Inputs = {}
        """What the model is given in the call that is made."""
        self.features: KeyedJaggedTensor | None = None
        """What was looked up last."""
        self.distribute: Callable[[KeyedJaggedTensor], Sequence[Any]] | None = None
        """Brings features to their shards as TorchRec did it with these, by sharding type."""
        self._following: Callable[[], Inputs] | None = None
        self._early: dict[int, Early] = {}
        self._dropped = self._pause = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """The forward calls of one batch; behind them nobody waits any more.

        Raises:
            Unusable: a rank is gone that was asked for what nobody took.
        """
        token = _ahead.set(self)
        self._pause = max(0, self._pause - 1)
        try:
            yield
        finally:
            _ahead.reset(token)
            self.begin(None)
            self._drop()

    def begin(self, following: Callable[[], Inputs] | None) -> None:
        """Begin a forward call.

        Args:
            following: makes the inputs of the one after it; None where there is none.
        """
        self.given, self.features, self.distribute = {}, None, None
        self._following = None if self._pause else following

    def next_features(self) -> KeyedJaggedTensor | None:
        """What the next call looks up, if it does as this one did; None where nobody can tell."""
        now = self.features
        if now is None or self._following is None:
            return None
        ids, lengths = now.values(), now.lengths()
        for name, value in self.given.items():
            of_input, _, suffix = name.rpartition(".")
            if suffix != "values" or not torch.equal(value.to(ids.dtype), ids):
                continue
            weights = now.weights_or_none()
            if weights is not None and f"{of_input}.weights" not in self.given:
                return None  # the model's own
            found = self._following()
            return KeyedJaggedTensor(
                keys=now.keys(),
                values=found[name].to(ids.dtype),
                lengths=found[f"{of_input}.lengths"].to(lengths.dtype),
                weights=None if weights is None else found[f"{of_input}.weights"],
            )
        return None

    def keep(self, site: int, early: Early) -> None:
        """Keep what was asked for a site until it is looked up."""
        self._early[site] = early

    def keeps(self, site: int) -> bool:
        """Whether something was asked for a site that was not looked up yet."""
        return site in self._early

    def take(self, site: int, lists: Mapping[int, Lists]) -> Early | None:
        """What was asked for these lists of a site; None where nothing was."""
        early = self._early.get(site)
        if early is None or not early.is_of(lists):
            return None
        self._dropped = 0
        return self._early.pop(site)

    def _drop(self) -> None:
        """Wait for what nobody took, as what comes back needs its place."""
        if not self._early:
            return
        left, self._early = self._early, {}
        self._dropped += 1
        if self._dropped == MOST_DROPPED:
            self._dropped, self._pause = 0, PAUSE
        for early in left.values():
            with suppress(RuntimeError):  # of a lookup, which nobody needs
                early.wait()


_ahead: ContextVar[Ahead | None] = ContextVar("forward calls of a batch", default=None)


def forward_calls() -> Ahead | None:
    """Those that are made; None outside of a batch."""
    return _ahead.get()


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)
