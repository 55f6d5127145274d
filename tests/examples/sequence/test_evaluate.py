"""The hit rate over the whole test part, from served answers."""

import pytest

from examples.sequence.evaluate import evaluate, main


def test_the_served_model_finds_twice_as_much_as_popularity(sequence: str) -> None:
    count, figures = evaluate(sequence)
    assert count == 10
    assert list(figures) == ["popularity", "served model"]
    assert figures["popularity"] == pytest.approx(0.0551, abs=0.0005)
    assert figures["served model"] >= 0.11


def test_no_server_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "http://127.0.0.1:9"]) == 1
    line = "ERROR http://127.0.0.1:9/predictions/sequence: [Errno 111] Connection refused\n"
    assert capsys.readouterr() == ("", line)
