"""A real training in short form, and its command line."""

from pathlib import Path

import numpy as np
import pytest

from examples.movielens.data import Dataset
from examples.movielens.files import DatasetMissingError
from examples.two_tower import train
from examples.two_tower.recall import measure
from examples.two_tower.search import most_popular


def test_two_epochs_find_more_than_popularity(dataset: Dataset) -> None:
    config = train.model_config(dataset)
    model = train.fit(dataset, config, train.TrainOptions(epochs=2, progress=False))
    user = np.unique(dataset.test_ratings.user)
    popularity = measure(dataset, user, most_popular(dataset, user).movie)
    assert popularity.recall == pytest.approx(0.082, abs=0.001)
    assert train.evaluate(model, config, dataset).recall >= 0.11


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
