"""Requests that a real worker reads in few system calls."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from examples.movielens.data import load
from torchrec_archiver.server import TorchServe


def test_a_worker_uses_it_for_small_and_large_requests_at_once(
    server: TorchServe, movielens: TorchServe
) -> None:
    """Bodies from 300 bytes to 2 MB share batches, and each gets the scores of its own rows."""
    assert movielens is server
    assert server.logs_soon("Requests are read by torchrec_handler.front.torchserve.reader")
    rows = load().test()
    counts = [1, 1, 40, 1, 400, 1, 1, 4000, 1, 1, 150, 1] * 4
    starts = [(at * 37) % 1000 for at in range(len(counts))]
    bodies = [
        dict(rows.take(slice(start, start + count)).request())
        for start, count in zip(starts, counts, strict=True)
    ]
    longest = slice(0, max(map(sum, zip(starts, counts, strict=True))))
    expected = movielens.predict("movielens", dict(rows.take(longest).request())).json()["default"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: movielens.predict("movielens", body), bodies))
    for start, count, answer in zip(starts, counts, answers, strict=True):
        assert answer.status_code == 200, answer.text
        scores = answer.json()["default"]
        np.testing.assert_allclose(scores, expected[start : start + count], atol=1e-6, rtol=0)
