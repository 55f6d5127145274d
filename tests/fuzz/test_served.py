"""A real TorchServe under good, bad and hostile requests: see `served`."""

import os
from pathlib import Path

import pytest

from tests.fuzz.served import MOST_GROWTH, fuzz

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "0"))
DEBUGGED = int(os.environ.get("FUZZ_DEBUGGED_REQUESTS", "0"))


@pytest.mark.skipif(not REQUESTS, reason="only in `make soak`")
@pytest.mark.timeout(300 + REQUESTS // 50)
def test_a_worker_answers_good_requests_right_beside_any_others(tmp_path: Path) -> None:
    """FUZZ_REQUESTS=200000 in `make soak`, where memory is looked at too."""
    tally, pids, memory = fuzz(tmp_path, requests=REQUESTS)
    assert tally.faults == []
    assert pids[0] == pids[1]
    if REQUESTS >= 100_000:
        assert memory[1] <= memory[0] * (1 + MOST_GROWTH)


@pytest.mark.skipif(not DEBUGGED, reason="only in `make soak`: Python's memory is slow to check")
@pytest.mark.timeout(300 + DEBUGGED // 10)
def test_no_request_writes_outside_of_its_memory(tmp_path: Path) -> None:
    """PYTHONMALLOC=debug ends a worker that wrote beyond an allocation."""
    tally, pids, _ = fuzz(
        tmp_path, requests=DEBUGGED, seed=1, environment={"PYTHONMALLOC": "debug"}
    )
    assert tally.faults == []
    assert pids[0] == pids[1]
