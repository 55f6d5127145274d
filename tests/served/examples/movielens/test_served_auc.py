"""The figure that matters, over HTTP."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.movielens.auc import auc
from examples.movielens.data import Dataset
from torchrec_archiver.server import TorchServe

ROWS_PER_REQUEST = 1000


def test_the_served_auc_is_that_of_the_float32_model(
    movielens: TorchServe, trained: Path, dataset: Dataset
) -> None:
    """Over the whole test part, to 0.001: what int8 tables may cost."""
    rows = dataset.test()
    scores: list[float] = []
    for start in range(0, len(rows), ROWS_PER_REQUEST):
        body = rows.take(slice(start, start + ROWS_PER_REQUEST)).request()
        answer = movielens.predict("movielens", dict(body))
        assert answer.is_success, answer.text
        scores += answer.json()["default"]
    float32 = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["auc"]
    served = auc(dataset.test_ratings.click, np.array(scores))
    assert served == pytest.approx(float32, abs=0.001)
