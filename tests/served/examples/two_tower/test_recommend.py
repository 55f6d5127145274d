"""The question for one user."""

import re

import pytest

from examples.movielens.data import Dataset
from examples.two_tower.recommend import main


def test_ten_unrated_movies_are_printed_nearest_first(
    two_tower: str,
    dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["--server", two_tower, "--user", "7"]) == 0
    printed = capsys.readouterr().out
    assert "The best 10 movies for user 7" in printed
    rows = re.findall(r"^│ (.+?) +│ +(-?[01]\.\d{3}) │ +(\d?) │$", printed, re.MULTILINE)
    assert len(rows) == 10
    cosines = [float(cosine) for _, cosine, _ in rows]
    assert cosines == sorted(cosines, reverse=True)
    titles, train, test = dataset.catalogue.titles, dataset.train_ratings, dataset.test_ratings
    rated = {titles[movie] for movie in train.movie[train.user == 7].tolist()}
    later = dict(zip(test.movie.tolist(), test.rating.tolist(), strict=True))
    assert later
    names = {title for title, _, _ in rows}
    assert names <= set(titles.values())
    # Two movies may have one title.
    assert len(names & rated) <= 1
