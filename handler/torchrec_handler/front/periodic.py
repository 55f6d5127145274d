"""A thread that does what need not be done while a batch waits."""

import logging
import threading
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""A line of metrics costs a request's time where workers are busy; Prometheus asks every 15 s."""


class Periodic:
    """Calls tasks now and then again and again. What one raises is logged the first time."""

    def __init__(self, tasks: Sequence[Callable[[], None]], seconds: float = SECONDS) -> None:
        self._tasks = tasks
        self._seconds = seconds
        self._is_over = threading.Event()
        self._failed: set[int] = set()
        # It never keeps a worker from ending.
        self._thread = threading.Thread(target=self._run, name="torchrec-periodic", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call the tasks a last time, and wait until they are done."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        self._call()
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(self._seconds)
            self._call()

    def _call(self) -> None:
        for number, task in enumerate(self._tasks):
            try:
                task()
            except Exception:
                if number not in self._failed:
                    logger.exception("A periodic task raised, which is not logged again")
                self._failed.add(number)
