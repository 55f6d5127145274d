"""A real TorchServe under good, bad and hostile requests: see `served`."""

import os
from pathlib import Path

import pytest

from tests.fuzz.served import MOST_GROWTH, fuzz

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1500"))
DEBUGGED = int(os.environ.get("FUZZ_DEBUGGED_REQUESTS", "500"))


@pytest.mark.skipif(not REQUESTS, reason="left out by FUZZ_REQUESTS=0")
@pytest.mark.timeout(300 + REQUESTS // 50)
def test_a_worker_answers_good_requests_right_beside_any_others(tmp_path: Path) -> None:
    """300,000 of them in `make soak`, where memory is looked at too."""
    tally, pids, memory = fuzz(tmp_path, requests=REQUESTS)
    assert tally.faults == []
    assert pids[0] == pids[1]
    if REQUESTS >= 100_000:
        assert memory[1] <= memory[0] * (1 + MOST_GROWTH)


@pytest.mark.skipif(not DEBUGGED, reason="left out by FUZZ_DEBUGGED_REQUESTS=0")
@pytest.mark.timeout(300 + DEBUGGED // 10)
def test_no_request_writes_outside_of_its_memory(tmp_path: Path) -> None:
    """PYTHONMALLOC=debug ends a worker that wrote beyond an allocation."""
    tally, pids, _ = fuzz(
        tmp_path, requests=DEBUGGED, seed=1, environment={"PYTHONMALLOC": "debug"}
    )
    assert tally.faults == []
    assert pids[0] == pids[1]
