"""Ranks that ask and answer: what they say, what raises, and what happens where one is gone."""

import os
import time
from typing import Any

import pytest
import torch

from tests.support.on_ranks import on_ranks
from torchrec_handler.errors import Unusable
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.exchange import Follower, Leader
from torchrec_handler.tables.messages import Asked

SECONDS = 1.0
SITE = 7


def asked(rows: int = 2, *, dtype: torch.dtype = torch.float32) -> Asked:
    """Three ids in lists of two and one."""
    return Asked(
        rank=1,
        site=SITE,
        ids=torch.tensor([5, 6, 7], dtype=torch.int32),
        offsets=torch.tensor([0, 2, 3]),
        weights=torch.tensor([0.5, 1.0, 2.0]),
        shape=(rows, 2),
        dtype=dtype,
    )


def look_up(ids: torch.Tensor, offsets: torch.Tensor, weights: Any) -> torch.Tensor:
    """Tells what it was given, [2, 2]; raises on a negative id."""
    if int(ids.min()) < 0:
        message = f"id {int(ids.min())}"
        raise ValueError(message)
    return torch.stack([(ids * weights).sum(), offsets.sum(), ids[-1].float(), weights[1]]).view(
        2, 2
    )


def answered(ranks: Ranks) -> Any:
    """Good lookups around one that raises, the last of them behind one that was asked before."""
    if not ranks.is_leader:
        Follower(ranks, {SITE: look_up}, SECONDS).run()
        return "stopped"
    leader = Leader(ranks, SECONDS)
    said: list[Any] = [leader.look_up([asked()], lambda: "own")]
    bad = Asked(**{**vars(asked()), "ids": torch.tensor([-3, 6, 7])})
    try:
        leader.look_up([bad], lambda: None)
    except RuntimeError as error:
        said.append(str(error))
    early = leader.ask([asked()])
    time.sleep(2.5 * SECONDS)  # in which the leader shows that it is there
    other = Asked(**{**vars(asked()), "ids": torch.tensor([1, 1, 1], dtype=torch.int32)})
    said.append(leader.look_up([other], lambda: "again"))
    said.append(early())
    leader.stop()
    return said


def test_a_lookup_that_raises_fails_alone() -> None:
    (first, raised, later, early), follower = on_ranks(2, answered)
    assert first[0] == "own"
    assert first[1][0].tolist() == [[22.5, 5.0], [7.0, 1.0]]
    assert raised == "rank 1: ValueError: id -3"
    assert later[0] == "again"
    assert later[1][0].tolist() == [[3.5, 5.0], [1.0, 1.0]]
    assert torch.equal(early[0], first[1][0])
    assert follower == "stopped"


def lost(ranks: Ranks, how: str) -> Any:
    """What the leader meets, and after how many seconds; what a follower does where it is gone."""
    if not ranks.is_leader:

        def fail(*_: Any) -> torch.Tensor:
            if how == "dies":
                os._exit(9)
            time.sleep(3 * SECONDS)
            return torch.zeros(2, 2)

        Follower(ranks, {SITE: fail}, SECONDS).run()
    began = time.monotonic()
    ends: list[str] = []
    leader = Leader(ranks, SECONDS)
    leader.when_lost(lambda error: ends.append(str(error)))
    with pytest.raises(Unusable) as first:
        leader.look_up([asked()], lambda: None)
    seconds = time.monotonic() - began
    with pytest.raises(Unusable) as second:
        leader.look_up([], lambda: None)
    return str(first.value), str(second.value), seconds


@pytest.mark.parametrize(("how", "most"), [("dies", 0.9), ("hangs", 2.0)])
def test_a_rank_that_does_not_answer_is_gone_for_good(how: str, most: float) -> None:
    (first, second, seconds), follower = on_ranks(2, lost, how)
    assert first.startswith("rank 1 of 2 is gone, or does not answer: ")
    assert second == first
    assert seconds < most * SECONDS
    assert follower is None


def left(ranks: Ranks) -> Any:
    """What a follower meets whose leader dies."""
    if ranks.is_leader:
        os._exit(9)
    with pytest.raises(Unusable) as found:
        Follower(ranks, {}, SECONDS).run()
    return str(found.value)


def test_a_follower_ends_with_its_leader() -> None:
    leader, follower = on_ranks(2, left)
    assert leader is None
    assert follower.startswith("rank 0, which leads, is gone: ")


def idle(ranks: Ranks) -> Any:
    """What the leader is told of a rank that dies while nothing is asked."""
    if not ranks.is_leader:
        os._exit(9)
    ends: list[Unusable] = []
    leader = Leader(ranks, SECONDS)
    leader.when_lost(ends.append)
    end = time.monotonic() + 3 * SECONDS
    while not ends and time.monotonic() < end:
        time.sleep(0.05)
    return list(map(str, ends))


def test_a_rank_that_dies_is_missed_while_nothing_is_asked() -> None:
    (ends, _) = on_ranks(2, idle)
    assert len(ends) == 1
    assert ends[0].startswith("rank 1 of 2 is gone, or does not answer: ")
