"""The model that training and serving share."""

import numpy as np
import pytest
import torch

from examples.sequence.model import ModelConfig, NextMovie, keyed

CONFIG = ModelConfig(movie_ids=40, embedding_dim=8, movies_read=5, movies_found=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> NextMovie:
    torch.manual_seed(0)
    model = NextMovie(CONFIG, CPU).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def logits(model: NextMovie, *histories: list[int]) -> torch.Tensor:
    lengths = torch.tensor([len(history) for history in histories], dtype=torch.int32)
    values = torch.from_numpy(np.concatenate([np.array(h, dtype=np.int32) for h in histories]))
    with torch.inference_mode():
        found: torch.Tensor = model(keyed(lengths, values))
    return found


def test_a_history_scores_the_same_alone_and_among_others(model: NextMovie) -> None:
    histories = [[1, 2, 3], [], [4], [5, 6, 7, 8, 9, 10, 11]]
    together = logits(model, *histories)
    assert together.shape == (4, CONFIG.movie_ids)
    for row, history in enumerate(histories):
        torch.testing.assert_close(together[row : row + 1], logits(model, history))


def test_only_the_newest_movies_are_read(model: NextMovie) -> None:
    read, whole, other = logits(
        model, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7], [9, 1, 2, 3, 4, 5, 6]
    )
    torch.testing.assert_close(read, whole)
    assert (read - other).abs().max() > 0.01


def test_the_order_of_a_history_counts(model: NextMovie) -> None:
    newest_first, newest_last = logits(model, [1, 2, 3], [3, 2, 1])
    assert (newest_first - newest_last).abs().max() > 0.01


def test_a_user_without_history_gets_scores_too(model: NextMovie) -> None:
    assert logits(model, []).isfinite().all()


def test_a_table_on_meta_takes_no_memory() -> None:
    model = NextMovie(CONFIG, CPU, torch.device("meta"))
    on_meta = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert on_meta == {"tables.embeddings.t_history.weight"}
