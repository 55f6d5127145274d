"""More requests than a worker can answer, sent whether or not there are answers."""

import selectors
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.soak import asking
from tests.soak.row import Row
from tests.support.factories.soaked import SECONDS_A_ROW
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving import load
from torchrec_archiver.serving.load import Request

TIMES = 5.0
SHARE = 0.8
NORMAL_SECONDS = 2.0
USUAL_SECONDS = 0.3
"""What a request takes where there is no overload: two batches."""
MOST_CONNECTIONS = 6_000
SLOW = 0.001
"""Seconds a row; one request has five, so that some 200 are answered a second."""
QUEUE = 250
"""As many as are answered while a client may wait: a second and a bit."""


@dataclass
class Offered:
    """What was sent at a rate, and came of it."""

    sent: int = 0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    dropped: int = 0
    """What had to be left out, as every connection waited."""
    answered_in_time: int = 0
    drained: float = 0.0
    """Seconds from the end to the last answer."""


class Sender:
    """Sends one request again and again at a rate, over as many connections as that takes."""

    def __init__(self, url: str, request: Request, selector: selectors.BaseSelector) -> None:
        self.seen = Offered()
        self.waiting = 0
        self._url = url
        self._request = request
        self._selector = selector
        self._idle: deque[load._Connection] = deque()
        self._opened = 0

    def send(self, due: int) -> None:
        """Send what is due, as far as there are connections."""
        for _ in range(due):
            if not self._idle:
                if self._opened >= MOST_CONNECTIONS:
                    self.seen.dropped += 1
                    continue
                self._idle.append(load._Connection(self._url, self._selector))
                self._opened += 1
            self._idle.popleft().send(self._request)
            self.waiting += 1
            self.seen.sent += 1

    def receive(self) -> None:
        """Take what has come, for a millisecond."""
        for key, mask in self._selector.select(0.001):
            one: load._Connection = key.data
            if mask & selectors.EVENT_WRITE:
                one.flush()
            if not mask & selectors.EVENT_READ or (answer := one.receive()) is None:
                continue
            took = time.perf_counter() - one.sent_at
            self.waiting -= 1
            if answer.startswith(load.OK):
                self.seen.answered.append(took)
            else:
                self.seen.refused.append(took)
                one.reopen()
            self._idle.append(one)

    def close(self) -> None:
        """Of all connections."""
        for one in self._idle:
            one.socket.close()


def offer(url: str, request: Request, rate: float, seconds: float) -> Offered:
    """Send at a rate, and wait for what was sent."""
    with selectors.DefaultSelector() as selector:
        sender = Sender(url, request, selector)
        seen = sender.seen
        began = time.perf_counter()
        while (now := time.perf_counter() - began) < seconds:
            sender.send(int(now * rate) - seen.sent - seen.dropped)
            sender.receive()
        seen.answered_in_time = len(seen.answered)
        while sender.waiting:
            sender.receive()
        seen.drained = time.perf_counter() - began - seconds
        sender.close()
    return seen


def server(folder: Path, *, seconds: float = 60.0) -> Row:
    """Offer several times of what the worker answers at best."""
    config = folder / "model-config.yaml"
    config.write_text(f"jobQueueSize: {QUEUE}\n", encoding="utf-8")
    archive = asking.archive(folder, config_file=config)
    with TorchServe(folder / "server", environment={SECONDS_A_ROW: str(SLOW)}) as running:
        running.register(archive).raise_for_status()
        url = str(running.inference.base_url).rstrip("/")
        request = load.request(
            url, f"/predictions/{asking.NAME}", {"Content-Type": "application/json"}, asking.BODY, 5
        )
        load.load(url, [request], connections=64, seconds=2)
        best = load.load(url, [request], connections=128, seconds=5).requests_per_second
        seen = offer(url, request, TIMES * best, seconds)
        ended = time.monotonic()
        normal = seen.drained + _until_normal(asking.address(running), ended)
    rate = seen.answered_in_time / seconds
    answered, refused = (
        np.percentile(times, [50, 99]) if times else (0.0, 0.0)
        for times in (seen.answered, seen.refused)
    )
    return Row(
        what=f"{TIMES:g} times as many requests as are answered, {seconds:g} s",
        promise=(
            f"{SHARE:.0%} of the best throughput, the rest refused at once, p99 bounded, "
            f"normal within {NORMAL_SECONDS:g} s"
        ),
        measured=(
            f"`jobQueueSize: {QUEUE}`: {rate:.0f} requests a second of {best:.0f} at best, "
            f"{rate / best:.0%}, of {(seen.sent + seen.dropped) / seconds:.0f} offered "
            f"({seen.dropped} not sent); "
            f"answered in {answered[0]:.2f} s (p99 {answered[1]:.2f}), refused in "
            f"{refused[0]:.3f} s (p99 {refused[1]:.3f}); usual again after {normal:.1f} s"
        ),
        held=rate >= SHARE * best and normal < NORMAL_SECONDS,
    )


def _until_normal(place: str, ended: float) -> float:
    while time.monotonic() < ended + 60:
        answer = asking.ask(place)
        if answer.is_right and answer.seconds < USUAL_SECONDS:
            return answer.sent - ended
        time.sleep(0.05)
    return float("inf")
