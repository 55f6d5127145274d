"""The training's command line; what it learns is measured from served answers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.movielens.files import DatasetMissingError, Ratings, read_ratings
from examples.sequence import train
from examples.sequence.data import steps_to_train
from examples.sequence.model import keyed


def test_the_loss_falls_below_that_of_popularity() -> None:
    """Over the first 200 users, whose ratings are the first in the order of users."""
    ratings = read_ratings()
    some = ratings.take(np.flatnonzero(ratings.user <= 200))
    config = train.model_config(ratings)
    model = train.fit(some, config, train.TrainOptions(epochs=2, progress=False))
    steps = steps_to_train(some, config.movies_read)
    with torch.inference_mode():
        history = steps.history
        logits = model(keyed(torch.from_numpy(history.lengths), torch.from_numpy(history.values)))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(steps.movie)).item()
    share = np.bincount(steps.movie) / len(steps)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert loss < entropy


def test_a_missing_wheel_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Ratings:
        message = "MovieLens-100k is not installed"
        raise DatasetMissingError(message)

    monkeypatch.setattr(train, "read_ratings", missing)
    assert train.main(["--output", str(tmp_path / "none"), "--threads", "1"]) == 1
    assert capsys.readouterr() == ("", "ERROR MovieLens-100k is not installed\n")
    assert not (tmp_path / "none").exists()
