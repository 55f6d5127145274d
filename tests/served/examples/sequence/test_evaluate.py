"""The hit rate over the whole test part, from served answers."""

import pytest

from examples.sequence.evaluate import evaluate


def test_the_served_model_finds_twice_as_much_as_popularity(sequence: str) -> None:
    count, figures = evaluate(sequence)
    assert count == 10
    assert list(figures) == ["popularity", "served model"]
    assert figures["popularity"] == pytest.approx(0.0551, abs=0.0005)
    assert figures["served model"] >= 0.11
