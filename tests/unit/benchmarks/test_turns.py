"""Contenders that take turns."""

import time
from functools import partial

import pytest

from benchmarks.turns import take_turns


def test_a_contender_is_told_as_a_multiple_of_the_first() -> None:
    contenders = {"first": [partial(time.sleep, 0.02)], "other": [partial(time.sleep, 0.005)]}
    timed = take_turns(contenders, turns=3, seconds=0.02)
    assert timed["first"].times_first == pytest.approx(1.0)
    # Nearer to four the less else runs.
    assert timed["other"].times_first > 1.5
    assert timed["first"].median_us > 20_000


def test_calls_are_made_one_after_another_after_one_that_is_not_timed() -> None:
    made: list[int] = []
    calls = [partial(made.append, number) for number in range(3)]
    take_turns({"first": calls}, turns=2, seconds=0)
    # Once each to see how long they take, then a call to warm up and one that is timed, by turns.
    assert made == [0, 1, 2, 2, 0, 2, 0]
