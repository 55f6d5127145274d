"""The area under the ROC curve."""

import re

import numpy as np
import pytest

from examples.movielens.auc import auc


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1.0),
        ([0.4, 0.3, 0.2, 0.1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], 0.5),
        ([0.1, 0.3, 0.2, 0.4], 0.75),
        ([0.1, 0.2, 0.2, 0.4], 0.875),
    ],
)
def test_known_answers(score: list[float], expected: float) -> None:
    assert auc(np.array([False, False, True, True]), np.array(score)) == expected


def test_it_is_the_share_of_pairs_in_which_the_click_scores_higher() -> None:
    random = np.random.default_rng(0)
    label, score = random.random(200) < 0.3, random.integers(0, 50, 200).astype(np.float32)
    click, other = score[label][:, None], score[~label]
    assert auc(label, score) == pytest.approx(((click > other) + (click == other) / 2).mean())


@pytest.mark.parametrize("clicks", [0, 3])
def test_one_kind_of_row_alone_has_none(clicks: int) -> None:
    message = f"received {clicks} clicks in 3 rows, expected both clicks and others"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        auc(np.full(3, bool(clicks)), np.zeros(3))
