"""Workers and frontends that are killed, as the kernel does where memory runs out."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.soak import asking
from tests.soak.row import Row
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving import settings
from torchrec_archiver.serving.frontend import Frontend
from torchrec_archiver.serving.session import temporary

BEYOND_IMPORT_SECONDS = 5.0
START_SECONDS = 60.0
ENDED_SECONDS = 5.0


def workers(folder: Path, *, times: int = 20) -> Row:
    """Kill the only worker under load, again and again."""
    archive = asking.archive(folder)
    imports = [_import_seconds()]
    back: list[float] = []
    with TorchServe(folder / "server") as server:
        server.register(archive).raise_for_status()
        with asking.clients(asking.address(server)) as answers:
            for _ in range(times):
                answers.wait_right_after(time.monotonic())
                (worker,) = server.workers(asking.NAME)
                os.kill(int(worker["pid"]), signal.SIGKILL)
                back.append(answers.wait_right_after(time.monotonic()))
    failed, wrong = answers.failed(), answers.wrong()
    unanswered = sum(answer.status == asking.UNANSWERED for answer in failed)
    # Other programs may have the machine now and then, and then imports too take longer.
    imports.append(_import_seconds())
    importing = sum(imports) / len(imports)
    most = max(back) - importing
    return Row(
        what=f"worker killed {times} times under load",
        promise=(
            f"right again in {BEYOND_IMPORT_SECONDS:g} s beyond importing torch; "
            "only what was in flight gets an error"
        ),
        measured=(
            f"right again in {min(back):.1f} to {max(back):.1f} s, of which importing torchrec "
            f"takes {importing:.1f}; of {len(answers.all)} requests {len(failed)} got an error "
            f"({_said(answers)}), {unanswered} no answer, {wrong} a wrong one"
        ),
        held=most < BEYOND_IMPORT_SECONDS
        and not wrong
        and not unanswered
        and len(failed) <= times * asking.CLIENTS,
    )


def frontends(folder: Path, *, times: int = 5) -> Row:
    """Kill the frontend, and start another one in its place."""
    store = folder / "model_store"
    store.mkdir()
    archive = asking.archive(store)
    given = settings.with_ports(settings.read(settings.CONFIG), settings.free_ports())
    place = settings.place(given, settings.PORTS[0])
    address = f"{place.host}:{place.port}"
    back: list[float] = []
    held: list[int] = []
    orphans = 0
    with temporary() as temp:
        for _ in range(times + 1):
            frontend = Frontend(given, temp, model_store=store, models=[f"{asking.NAME}={archive}"])
            with _ended(frontend):
                began = time.monotonic()
                while not asking.ask(address, seconds=5).is_right:
                    if time.monotonic() > began + START_SECONDS:
                        break
                    time.sleep(0.1)
                back.append(time.monotonic() - began)
                held.append(len([path for path in temp.iterdir() if path.name != "models"]))
                (java,) = [one for one in frontend.processes() if one.name() == "java"]
                java.kill()
                end = time.monotonic() + ENDED_SECONDS
                while frontend.processes() and time.monotonic() < end:
                    time.sleep(0.05)
                orphans += len(frontend.processes())
        unpacked = len(list((temp / "models").iterdir()))
    return Row(
        what=f"frontend killed and started again {times} times",
        promise="the model is back by itself; nothing in the way, nothing left behind",
        measured=(
            f"back in {min(back[1:]):.1f} to {max(back[1:]):.1f} s (the first start took "
            f"{back[0]:.1f}); {orphans} processes outlived it by {ENDED_SECONDS:g} s; its folder "
            f"held {held[0]} files and folders at first, {held[-1]} at last, and {unpacked} "
            "unpacked archives"
        ),
        held=max(back) < START_SECONDS and not orphans and held[-1] <= held[0],
    )


@contextmanager
def _ended(frontend: Frontend) -> Iterator[None]:
    with frontend:
        yield


def _import_seconds() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import ts, torchrec"], check=True, capture_output=True)
    return time.monotonic() - began


def _said(answers: asking.Answers) -> str:
    said = Counter(f"{answer.status} {_message(answer.said)}" for answer in answers.failed())
    return ", ".join(f"{count} x {text}" for text, count in said.most_common(4)) or "none"


def _message(text: str) -> str:
    return text.partition('"message": "')[2].partition('"')[0] or text
