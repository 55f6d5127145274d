"""Clients that hold what they can: slow ones, huge bodies, more connections than descriptors."""

import resource
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tests.soak import asking
from tests.soak.row import Row
from torchrec_archiver.server import TorchServe

CONNECTIONS = 500
DESCRIPTORS = 420
SLOW = 100
HUGE = 80_000_000
BACK_SECONDS = 5.0
USUAL_SECONDS = 1.0


def clients(folder: Path, *, seconds: float = 10.0) -> Row:
    """Ask beside each of them.

    Args:
        folder: empty.
        seconds: how long slow clients send a byte of their requests now and then.
    """
    archive = asking.archive(folder)
    with TorchServe(folder / "server") as server:
        server.register(archive).raise_for_status()
        place = asking.address(server)
        slow, closed = _beside_slow(place, seconds)
        with asking.clients(place, 2, pause=0.01) as beside_huge:
            huge = [asking.ask(place, b" " * HUGE).status for _ in range(3)]
        (java,) = [one for one in server.processes() if one.name() == "java"]
        held = java.rlimit(resource.RLIMIT_NOFILE)
        java.rlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, held[1]))
        crowded, back = _beside_many(place)
        java.rlimit(resource.RLIMIT_NOFILE, held)
        pids = {worker["pid"] for worker in server.workers(asking.NAME)}
    harmed = [answer for answer in [*slow.all, *beside_huge.all] if not answer.is_right]
    slowest = max(answer.seconds for answer in [*slow.all, *beside_huge.all])
    return Row(
        what=(
            f"{SLOW} slow clients; bodies of {HUGE // 10**6} MB; {CONNECTIONS} connections "
            f"with {DESCRIPTORS} descriptors"
        ),
        promise="limits hold, others are unharmed, slow ones closed",
        measured=(
            f"beside slow ones and huge bodies {len(harmed)} of "
            f"{len(slow.all) + len(beside_huge.all)} failed, the slowest took {slowest:.2f} s; "
            f"{closed} of {SLOW} slow ones were closed in {seconds:g} s; huge bodies got "
            f"{sorted(map(str, set(huge)))}; with all descriptors taken clients got "
            f"{dict(crowded)}, and {back:.1f} s after right answers"
        ),
        held=not harmed and slowest < USUAL_SECONDS and back < BACK_SECONDS and len(pids) == 1,
    )


def _beside_slow(place: str, seconds: float) -> tuple[asking.Answers, int]:
    host, _, port = place.partition(":")
    opened = [socket.create_connection((host, int(port)), 5) for _ in range(SLOW)]
    head = f"POST /predictions/{asking.NAME} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    gone: set[socket.socket] = set()
    with asking.clients(place, 2, pause=0.01) as answers:
        began = time.monotonic()
        at = 0
        while time.monotonic() < began + seconds:
            for one in opened:
                try:
                    one.sendall(head[at : at + 1].encode() or b" ")
                except OSError:
                    gone.add(one)
            at += 1
            time.sleep(0.2)
    for one in opened:
        one.close()
    return answers, len(gone)


def _beside_many(place: str) -> tuple[Mapping[int | str, int], float]:
    host, _, port = place.partition(":")
    opened = [socket.create_connection((host, int(port)), 5) for _ in range(CONNECTIONS)]
    time.sleep(1)
    answers = asking.Answers([asking.ask(place, seconds=2) for _ in range(3)])
    for one in opened:
        one.close()
    closed = time.monotonic()
    while not asking.ask(place, seconds=2).is_right and time.monotonic() < closed + 60:
        time.sleep(0.1)
    return answers.statuses(), time.monotonic() - closed
