"""Next movies from the real server, through the client."""

import re

import httpx
import numpy as np
import pytest

from examples.movielens.files import read_ratings
from examples.movielens.rows import Bags
from examples.sequence.data import steps_to_test
from examples.sequence.find import FindError, find


@pytest.fixture(scope="module")
def histories() -> Bags:
    return steps_to_test(read_ratings()).history.take(np.arange(0, 19_633, 200))


def test_a_movie_of_the_history_is_never_found(sequence: str, histories: Bags) -> None:
    found = find(sequence, histories)
    assert found.movie.shape == found.score.shape == (len(histories), 10)
    for movies, instance in zip(found.movie, histories.instances(["history"]), strict=True):
        assert len(set(movies)) == 10
        assert not set(movies) & {0, *instance["history"]}


def test_scores_are_probabilities_the_highest_first(sequence: str, histories: Bags) -> None:
    score = find(sequence, histories).score
    assert (np.diff(score, axis=1) <= 0).all()
    assert (score > 0).all()
    assert (score.sum(axis=1) < 1).all()


def test_a_row_answers_the_same_alone_and_among_others(sequence: str, histories: Bags) -> None:
    together, alone = find(sequence, histories), find(sequence, histories.take(slice(7, 8)))
    assert together.movie[7].tolist() == alone.movie[0].tolist()
    np.testing.assert_allclose(together.score[7], alone.score[0], atol=1e-6)


def test_json_answers_hold_the_values_of_one_row_behind_another(sequence: str) -> None:
    body = {"instances": [{"history": [172, 50]}, {"history": []}]}
    answer = httpx.post(f"{sequence}/predictions/sequence", json=body).json()
    history = Bags(
        lengths=np.array([[2, 0]], dtype=np.int32), values=np.array([172, 50], dtype=np.int32)
    )
    found = find(sequence, history)
    assert answer["movies"] == found.movie.ravel().tolist()
    np.testing.assert_allclose(answer["scores"], found.score.ravel(), atol=1e-6)


def test_what_the_server_answered_is_told(sequence: str, histories: Bags) -> None:
    message = f"{sequence}/predictions/predictions/sequence: Model not found: predictions"
    with pytest.raises(FindError, match=f"^{re.escape(message)}$"):
        find(f"{sequence}/predictions", histories)
