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


@pytest.mark.parametrize("user", [0, 944])
def test_an_unknown_user_is_one_error_line(user: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--user", str(user)]) == 1
    line = f"ERROR --user: received {user}, expected a user of MovieLens-100k, 1 to 943\n"
    assert capsys.readouterr() == ("", line)


def test_no_server_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "http://127.0.0.1:9"]) == 1
    line = "ERROR http://127.0.0.1:9/predictions/two_tower: [Errno 111] Connection refused\n"
    assert capsys.readouterr() == ("", line)
