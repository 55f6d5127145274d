"""The question for one user."""

import re

import pytest

from examples.movielens.data import Dataset
from examples.sequence.recommend import main


def test_ten_movies_are_printed_the_most_probable_first(
    sequence: str,
    dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["--server", sequence]) == 0
    printed = capsys.readouterr().out
    assert "The next movies of user 42" in printed
    rows = re.findall(r"^│ (.+?) +│ +(0\.\d{4}) │ +(\d*) │$", printed, re.MULTILINE)
    assert len(rows) == 10
    probabilities = [float(probability) for _, probability, _ in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    test = dataset.test_ratings
    came = [dataset.catalogue.titles[movie] for movie in test.movie[test.user == 42].tolist()]
    for title, _, came_as in rows:
        assert title in dataset.catalogue.titles.values()
        assert not came_as or came[int(came_as) - 1] == title
