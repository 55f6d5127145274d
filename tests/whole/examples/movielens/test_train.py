"""A real training, and its command line."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.movielens import train
from examples.movielens.auc import auc
from examples.movielens.data import Dataset
from examples.movielens.files import DatasetMissingError
from examples.movielens.model import build_model


def test_the_model_beats_the_means(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["auc"] >= 0.775
    assert metrics["auc"] > metrics["baseline_auc"] >= 0.767
    assert (metrics["train_rows"], metrics["test_rows"]) == (80_367, 19_633)


def test_the_auc_is_that_of_the_checkpoint(trained: Path, dataset: Dataset) -> None:
    config = pickle.loads((trained / "config.pkl").read_bytes())
    model = build_model(config, torch.device("cpu"))
    model.load_state_dict(torch.load(trained / "weights.pt", weights_only=True))
    with torch.inference_mode():
        score = train.logits(model.eval(), config, dataset.test()).numpy()
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert auc(dataset.test_ratings.click, score) == pytest.approx(metrics["auc"], abs=1e-5)


def test_titles_are_written_as_they_are(trained: Path, dataset: Dataset) -> None:
    titles = json.loads((trained / "movies.json").read_text(encoding="utf-8"))
    assert titles == {str(movie): title for movie, title in dataset.catalogue.titles.items()}


def test_the_same_seed_gives_the_same_weights(dataset: Dataset) -> None:
    rows, config = dataset.train().take(slice(0, 5000)), train.model_config(dataset)
    first, second, other = (
        train.fit(
            rows, config, train.TrainOptions(seed=seed, epochs=1, progress=False)
        ).state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert not any(torch.equal(first[name], other[name]) for name in first if "weight" in name)


def test_the_baseline_is_user_mean_plus_movie_mean(dataset: Dataset) -> None:
    known, asked = dataset.train_ratings, dataset.test_ratings
    score = train.baseline(dataset)
    for row in (0, 5_000, 19_632):
        user = known.rating[known.user == asked.user[row]].mean()
        movie = known.rating[known.movie == asked.movie[row]].mean()
        assert score[row] == pytest.approx(user + movie)
    unseen = ~np.isin(asked.movie, known.movie)
    assert unseen.any()
    row = int(unseen.argmax())
    user = known.rating[known.user == asked.user[row]].mean()
    assert score[row] == pytest.approx(user + dataset.mean_rating)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_on_a_terminal_only(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, config = dataset.train().take(slice(0, 2000)), train.model_config(dataset)
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        monkeypatch.setattr("sys.stderr", stream)
        train.fit(rows, config, train.TrainOptions(epochs=1))
    assert "epoch 1/1: 100%" in terminal.getvalue()
    assert log.getvalue() == ""


def test_a_missing_wheel_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Dataset:
        message = "MovieLens-100k is not installed"
        raise DatasetMissingError(message)

    monkeypatch.setattr(train, "load", missing)
    assert train.main(["--output", str(tmp_path / "none"), "--threads", "1"]) == 1
    assert capsys.readouterr() == ("", "ERROR MovieLens-100k is not installed\n")
    assert not (tmp_path / "none").exists()
