"""Good and bad requests of all formats for minutes: nothing grows."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.fuzz import served
from tests.fuzz.requests import Call, good_calls
from tests.soak.row import Row
from tests.support.factories.fuzzed import FuzzedPredictFactory
from tests.support.grpc_client import GrpcClient
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe

MOST_GROWTH = 0.05
WARM_SHARE = 0.3
EVERY_SECONDS = 2.0
"""In between the processes are looked at."""


def load(folder: Path, *, minutes: float) -> Row:
    """Send for some minutes, and compare processes when warm with those at the end."""
    archive = build_archive(
        model_name=served.NAME,
        version="1.0",
        factory=FuzzedPredictFactory,
        export_path=folder,
        config_file=served._config(folder),
    )
    good = [call for call in good_calls(150) if call.rows <= 1_000]
    with TorchServe(folder / "server") as server:
        server.register(archive).raise_for_status()
        place = str(server.inference.base_url).removeprefix("http://").rstrip("/")
        channel = GrpcClient(server.grpc_address, folder)
        tally = served.Tally()
        end = time.monotonic() + 60 * minutes
        sender = threading.Thread(target=lambda: _send(place, channel, good, tally, end))
        sender.start()
        workers = [psutil.Process(int(each["pid"])) for each in server.workers(served.NAME)]
        java = [one for one in server.processes() if one.name() == "java"]
        seen: dict[str, list[tuple[float, ...]]] = {"worker": [], "frontend": []}
        while sender.is_alive():
            for name, (process,) in (("worker", workers), ("frontend", java)):
                memory = process.memory_full_info().uss
                seen[name].append((memory, process.num_fds(), process.num_threads()))
            sender.join(EVERY_SECONDS)
        channel.close()
    measured, held = [], not tally.faults
    for name, samples in seen.items():
        warm = samples[int(WARM_SHARE * len(samples)) : int(2 * WARM_SHARE * len(samples))]
        late = samples[-len(warm) :]
        before, after = (
            [sorted(column)[len(column) // 2] for column in zip(*part, strict=True)]
            for part in (warm, late)
        )
        measured.append(
            f"{name}: {before[0] / 1e6:.0f} to {after[0] / 1e6:.0f} MB, {before[1]:.0f} to "
            f"{after[1]:.0f} files, {before[2]:.0f} to {after[2]:.0f} threads"
        )
        # Java takes memory as it likes, up to its bound.
        held = held and after[1] <= before[1] + 5 and after[2] <= before[2] + 2
        held = held and (name == "frontend" or after[0] <= before[0] * (1 + MOST_GROWTH))
    return Row(
        what=f"mixed load, {minutes:g} minutes",
        promise="no growth of memory, files or threads",
        measured=f"{tally.done} requests, {len(tally.faults)} faults; " + "; ".join(measured),
        held=held,
    )


def _send(
    place: str, channel: GrpcClient, good: list[Call], tally: served.Tally, end: float
) -> None:
    dice = random.Random(7)  # noqa: S311  no secret

    def drawn() -> Iterator[Call]:
        while time.monotonic() < end:
            yield served._draw(good, good, dice)

    served._send(place, channel, drawn(), tally)
