"""Tables that are replaced, overwritten or cut short under a running worker."""

import os
import shutil
import time
from pathlib import Path

from tests.soak import asking
from tests.soak.row import Row
from torchrec_archiver.server import TorchServe
from torchrec_handler.archive.format import TABLES

SEEN_SECONDS = 3.0
"""From the change to the last wrong answer, at most: the file is looked at once a second."""
WATCHED_SECONDS = 5.0


def _renamed(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.replace(path)


def _overwritten(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\x01" * size)


def _truncated(path: Path) -> None:
    os.truncate(path, 100)


WAYS = {
    "replaced by renaming": _renamed,
    "overwritten in place": _overwritten,
    "cut short": _truncated,
}


def tables(folder: Path) -> Row:
    """Do each of it to a model that is being asked."""
    archive = asking.archive(folder, archive_format="no-archive")
    measured, held = [], True
    with TorchServe(folder / "server") as server:
        stored = Path(shutil.copytree(archive, server.model_store / asking.NAME))
        path, kept = stored / TABLES, (stored / TABLES).read_bytes()
        for name, change in WAYS.items():
            other = path.with_suffix(".new")
            other.write_bytes(kept)
            other.replace(path)
            server.register(stored).raise_for_status()
            # Requests that wait for a worker which cannot load are never answered.
            place = asking.address(server)
            with asking.clients(place, 2, pause=0.01, seconds=WATCHED_SECONDS) as answers:
                answers.wait_right_after(time.monotonic())
                began = time.monotonic()
                change(path)
                time.sleep(WATCHED_SECONDS)
                ended = answers.failed()
                wrong = [a for a in answers.all if a.status == 200 and not a.is_right]
            server.unregister(asking.NAME)
            last = max((a.sent + a.seconds - began for a in wrong), default=0.0)
            goes_on = not ended
            measured.append(
                f"{name}: {len(wrong)} wrong answers, the last after {last:.1f} s, "
                + ("it answers on" if goes_on else "then the worker ended")
            )
            held = held and last <= SEEN_SECONDS and goes_on is (change is _renamed)
            held = held and (change is not _renamed or not wrong)
        log = server.log()
    said = "it was changed while it was served" in log
    refused = f"expected {len(kept)}" in log or "tables.bin" in log
    return Row(
        what=f"{TABLES} replaced, overwritten, cut short under a running worker",
        promise="right answers, or an end with a clear error: never silently wrong for long",
        measured="; ".join(measured) + f"; the log says why: {said and refused}",
        held=held and said,
    )
