"""The measure for all users, by served embeddings."""

import pytest

from examples.two_tower.evaluate import evaluate


def test_served_towers_find_far_more_than_popularity(two_tower: str) -> None:
    figures = evaluate(two_tower)
    assert list(figures) == ["popularity", "served towers"]
    assert figures["popularity"].recall == pytest.approx(0.082, abs=0.001)
    assert figures["served towers"].recall >= 0.155
    assert figures["served towers"].hit_rate > figures["popularity"].hit_rate
