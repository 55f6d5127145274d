"""Single rows beside the smallest requests that ask for the most: see `neighbours`."""

from pathlib import Path

from tests.fuzz.neighbours import REFUSED_ROWS, serve_both


def test_single_rows_are_answered_beside_requests_of_too_many_rows(tmp_path: Path) -> None:
    seen = serve_both(tmp_path, REFUSED_ROWS, seconds=4)
    assert set(seen["good"].statuses) == {200}
    assert set(seen["greedy"].statuses) == {413}
    assert seen["good"].p99() < 1
