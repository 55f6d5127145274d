"""The measure for all users, by served embeddings."""

import re

import pytest

from examples.two_tower.evaluate import evaluate, main


def test_served_towers_find_far_more_than_popularity(two_tower: str) -> None:
    figures = evaluate(two_tower)
    assert list(figures) == ["popularity", "served towers"]
    assert figures["popularity"].recall == pytest.approx(0.082, abs=0.001)
    assert figures["served towers"].recall >= 0.155
    assert figures["served towers"].hit_rate > figures["popularity"].hit_rate


def test_no_server_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "http://127.0.0.1:9"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"ERROR http://127\.0\.0\.1:9/predictions/two_tower: .+\n", printed.err)
