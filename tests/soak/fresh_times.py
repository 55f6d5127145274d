"""How soon deltas are served, how long workers stand still for them, and what that costs."""

import http.client
import os
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import psutil

from tests.soak.fresh import NAME, Fresh, asked, build
from tests.soak.row import Row
from tests.support.factories.fresh import FEATURES, LargeFreshPredictFactory
from tests.support.line import drawn
from torchrec_archiver.server import TorchServe

OFF = "stale"
"""The model without updates."""
SIZES = {1_000: (60, 8), 100_000: (150, 25), 1_000_000: (600, 120)}
"""Rows of a delta -> wanted of 99 of 100: milliseconds until it is served, and of standstill."""
LEAST = {"idle": 0.98, "changing": 0.95}
"""Wanted of the throughput: with the gate, and with 100,000 rows a second beside it."""
MOST_WRITTEN = 1.1
"""Bytes written to disks a byte of deltas, by workers and whoever publishes."""
LONGEST_SECONDS = 60.0


def times(folder: Path, *, deltas: int = 50, rounds: int = 6, seconds: float = 5.0) -> Row:
    """Measure under load, throughput in turns."""
    said: list[str] = []
    held = True
    with TorchServe(folder / "server") as server:
        fresh = Fresh(folder, server, LargeFreshPredictFactory)
        place = str(server.inference.base_url).removeprefix("http://").rstrip("/")
        for rows, (wanted, standing) in SIZES.items():
            count = deltas if rows < max(SIZES) else max(deltas // 5, 2)
            fresh.published, before = 0, _written(server)
            with _Load(place, NAME):
                late, still = zip(*(_publish(fresh, rows) for _ in range(count)), strict=True)
            found = [np.percentile(each, (50, 99)) for each in (late, still)]
            wrote = (_written(server) - before) / fresh.published
            held = held and found[0][1] <= wanted and found[1][1] <= standing
            held = held and wrote <= MOST_WRITTEN
            said.append(
                f"{rows:,} rows: served after {found[0][0]:.0f} ms (p99 {found[0][1]:.0f}), "
                f"standstill {found[1][0]:.1f} ms (p99 {found[1][1]:.1f}), "
                f"{wrote:.2f} bytes written a byte"
            )
        (folder / OFF).mkdir()
        archive = build(folder / OFF, OFF, LargeFreshPredictFactory, {})
        server.register(archive, initial_workers=2).raise_for_status()
        for kind, bodies in (("ranking", [0]), ("single rows", [1, 2, 3, 4])):
            shares: dict[str, list[float]] = {"idle": [], "changing": []}
            for _ in range(rounds):
                off, on = (_rate(place, name, bodies, seconds) for name in (OFF, NAME))
                changing = _changing(fresh, place, bodies, seconds)
                shares["idle"].append(on / off)
                shares["changing"].append(changing / on)
            medians = {name: statistics.median(found) for name, found in shares.items()}
            held = held and all(medians[name] >= least for name, least in LEAST.items())
            said.append(
                f"{kind}: {medians['idle']:.1%} of the throughput without updates, with 100,000 "
                f"rows a second {medians['changing']:.1%} of that"
            )
    shutil.rmtree(fresh.live, ignore_errors=True)
    return Row(
        what="deltas under load, 2 workers",
        promise=(
            "p99 of 1,000, 100,000 and 1,000,000 rows: served after 60, 150, 600 ms, standstill 8, "
            "25, 120 ms; 1.1 bytes written to disks a byte; throughput 98 % with the gate, 95 % "
            "with 100,000 rows a second"
        ),
        measured="; ".join(said),
        held=bool(held),
    )


def _written(server: TorchServe) -> int:
    """Bytes to disks, of all workers and this process."""
    pids = [os.getpid(), *(int(one["pid"]) for one in server.workers(NAME))]
    return sum(psutil.Process(pid).io_counters().write_bytes for pid in pids)


def _publish(fresh: Fresh, rows: int) -> tuple[float, float]:
    """Milliseconds until a delta is served, and that workers stood still."""
    sequence = fresh.line.sequence + 1
    dice = np.random.default_rng(sequence)
    entries = fresh.index.tables
    tables = [drawn(entry, rows // len(FEATURES), dice) for entry in entries]
    seen: list[float] = []

    def watch() -> None:
        end = time.time() + LONGEST_SECONDS
        while fresh.control.served < sequence and time.time() < end:
            time.sleep(0.0005)
        seen.append(time.time())

    watching = threading.Thread(target=watch)
    watching.start()
    path = fresh.line.publish(tables)
    published = path.stat().st_ctime_ns / 1e9
    fresh.published += path.stat().st_size
    watching.join()
    time.sleep(0.05)
    path.unlink()
    return 1e3 * (seen[0] - published), fresh.control.pause / 1e3


class _Load:
    """Clients who ask without a pause, inside of a `with` block."""

    def __init__(self, place: str, name: str, bodies: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        self._place, self._name = place, name
        self._content = asked().bodies
        self._is_over = threading.Event()
        self.answers = 0
        self._threads = [threading.Thread(target=self._ask, args=(body,)) for body in bodies]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, body: int) -> None:
        connection = http.client.HTTPConnection(self._place, timeout=LONGEST_SECONDS)
        headers = {"Content-Type": "application/json"}
        while not self._is_over.is_set():
            connection.request("POST", f"/predictions/{self._name}", self._content[body], headers)
            answer = connection.getresponse()
            answer.read()
            self.answers += answer.status == 200
        connection.close()


def _rate(place: str, name: str, bodies: list[int], seconds: float) -> float:
    """Answers a second."""
    four = tuple((bodies * 4)[:4])
    with _Load(place, name, four) as load:
        time.sleep(0.3)
        before, began = load.answers, time.perf_counter()
        time.sleep(seconds)
        return (load.answers - before) / (time.perf_counter() - began)


def _changing(fresh: Fresh, place: str, bodies: list[int], seconds: float) -> float:
    """The same, with 100,000 rows a second. They are drawn beforehand, not beside the clients."""
    dice = np.random.default_rng(0)
    count = round(seconds + 1)
    drafts = [
        [drawn(entry, 100_000 // len(FEATURES), dice) for entry in fresh.index.tables]
        for _ in range(count)
    ]
    is_over = threading.Event()

    def publish() -> None:
        for tables in drafts:
            path = fresh.line.publish(tables)
            if is_over.wait(1):
                break
            path.unlink()

    publishing = threading.Thread(target=publish)
    publishing.start()
    found = _rate(place, NAME, bodies, seconds)
    is_over.set()
    publishing.join()
    return found
