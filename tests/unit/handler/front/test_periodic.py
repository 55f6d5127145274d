"""Tasks are called at once, again and again, and a last time."""

import logging
import threading

import pytest

from torchrec_handler.front.periodic import Periodic


def test_tasks_are_called_until_it_stops() -> None:
    called = threading.Semaphore(0)
    periodic = Periodic([called.release], seconds=0.001)
    for _ in range(3):
        assert called.acquire(timeout=10)
    periodic.stop()
    while called.acquire(blocking=False):
        pass
    assert not called.acquire(timeout=0.05)


def test_tasks_are_called_at_once_and_at_the_end() -> None:
    calls: list[str] = []
    periodic = Periodic([lambda: calls.append("called")], seconds=60.0)
    periodic.stop()
    assert calls == ["called"] * 2


def test_what_a_task_raises_is_logged_once_and_stops_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raises() -> None:
        message = "disk on fire"
        raise OSError(message)

    calls: list[str] = []
    Periodic([raises, lambda: calls.append("called")], seconds=60.0).stop()
    assert calls == ["called"] * 2
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.ERROR, "A periodic task raised, which is not logged again")
    ]
