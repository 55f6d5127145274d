"""The model that other servers of `make bench` answer with."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.stock import StockModel, scaled_weights, score
from tests.support.answering import some_inputs


def test_peers_put_requests_together_up_to_a_number_of_rows(tmp_path: Path) -> None:
    """What a call may hold is a matter of speed: the scores are those of each request alone."""
    torch.save(scaled_weights(), tmp_path / "checkpoint.pt")
    model = StockModel(tmp_path / "checkpoint.pt")
    parts = [some_inputs(rows) for rows in (1, 600, 500, 3)]
    together = score(model, parts)
    assert [len(scores) for scores in together] == [1, 600, 500, 3]
    for scores, part in zip(together, parts, strict=True):
        np.testing.assert_allclose(scores, model(part), atol=1e-6, rtol=0)
