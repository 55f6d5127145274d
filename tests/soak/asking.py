"""Clients of the soaked model who ask without a pause, and judge what they get."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.archives import good
from tests.support.factories.soaked import HANGS, SoakedPredictFactory
from torchrec_archiver.server import TorchServe

NAME = "soaked"
CLIENTS = 8
LONGEST_SECONDS = 60.0
TOLERANCE = 1e-3
BODY = json.dumps(good.request()).encode()
EXPECTED = good.expected_scores().numpy()
UNANSWERED = "unanswered"


def hanging() -> bytes:
    """A request with which the model never answers."""
    body: dict[str, Any] = good.request()
    body["float_features"][0][0] = HANGS
    return json.dumps(body).encode()


def archive(folder: Path, **arguments: Any) -> Path:
    """Build the soaked model's archive; arguments are build_archive's."""
    return good.build(folder, **{"model_name": NAME, "factory": SoakedPredictFactory, **arguments})


def address(server: TorchServe) -> str:
    """Host and port of a server's inference API."""
    return str(server.inference.base_url).removeprefix("http://").rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one request got."""

    sent: float
    """time.monotonic()"""
    seconds: float
    status: int | str
    """`UNANSWERED`, or how the connection ended."""
    said: str
    """Of an error."""
    is_right: bool


def ask(place: str, body: bytes = BODY, seconds: float = LONGEST_SECONDS) -> Answer:
    """One request over a connection of its own."""
    sent = time.monotonic()
    connection = http.client.HTTPConnection(place, timeout=seconds)
    status: int | str
    try:
        connection.request(
            "POST", f"/predictions/{NAME}", body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        status, content = answer.status, answer.read()
    except TimeoutError:
        status, content = UNANSWERED, b""
    except (OSError, http.client.HTTPException) as error:
        status, content = type(error).__name__, b""
    finally:
        connection.close()
    is_right = status == 200 and _is_right(content)
    said = "" if status == 200 else content.decode(errors="replace")[:300]
    return Answer(
        sent=sent, seconds=time.monotonic() - sent, status=status, said=said, is_right=is_right
    )


def _is_right(content: bytes) -> bool:
    received = np.asarray(json.loads(content)["logit"])
    return received.shape == EXPECTED.shape and np.allclose(received, EXPECTED, atol=TOLERANCE)


@dataclass
class Answers:
    """Of all clients, as they come."""

    all: list[Answer] = field(default_factory=list)

    def statuses(self) -> Mapping[int | str, int]:
        """How many of each."""
        return Counter(answer.status for answer in self.all)

    def wrong(self) -> int:
        """Answers that are 200 and not what the model says."""
        return sum(answer.status == 200 and not answer.is_right for answer in self.all)

    def failed(self) -> list[Answer]:
        """All others than 200."""
        return [answer for answer in self.all if answer.status != 200]

    def right_after(self, moment: float) -> float | None:
        """Seconds from a moment to the first right answer to what was sent later."""
        ends = [a.sent + a.seconds for a in list(self.all) if a.sent >= moment and a.is_right]
        return min(ends) - moment if ends else None

    def wait_right_after(self, moment: float, seconds: float = LONGEST_SECONDS) -> float:
        """The same, once there is one; infinite where there is none in time."""
        while (found := self.right_after(moment)) is None:
            if time.monotonic() > moment + seconds:
                return float("inf")
            time.sleep(0.05)
        return found


@contextmanager
def clients(
    place: str, count: int = CLIENTS, pause: float = 0.0, seconds: float = LONGEST_SECONDS
) -> Iterator[Answers]:
    """Ask all the time, `count` requests at once, each for so many seconds at most."""
    answers = Answers()
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.all.append(found := ask(place, seconds=seconds))
            # As any client does that is refused.
            stop.wait(pause if found.status == 200 else max(pause, 0.05))

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
