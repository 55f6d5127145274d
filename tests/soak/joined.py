"""Two machines, as network namespaces: TorchServe on the first, the second joined, and killed.

`python -m tests.soak.joined FOLDER TIMES` runs inside of the first one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.soak import asking
from tests.soak.row import Row
from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe

IP = shutil.which("ip") or "ip"
FIRST, SECOND = "soakone", "soaktwo"
ADDRESSES = {FIRST: "10.87.0.1", SECOND: "10.87.0.2"}
ENDPOINT = f"{ADDRESSES[FIRST]}:29400"
START_SECONDS = 240.0
TIMES = 3
CONFIG = f"""\
parallelType: tp
deviceType: cpu
torchrun: {{nnodes: 2, nproc-per-node: 1, rdzv-backend: static, rdzv-endpoint: "{ENDPOINT}"}}
torchrec: {{sharding: {{type: row_wise}}}}
"""


def machines(folder: Path, *, times: int = TIMES) -> Row:
    """Kill the joined machine under load, and start it again, the first one untouched."""
    what = f"a joined machine killed {times} times under load, and started again"
    promise = "right again once it has joined; the first machine is not touched; none wrong"
    try:
        with _namespaces():
            done = subprocess.run(
                [
                    *(IP, "netns", "exec", FIRST, sys.executable, "-m", "tests.soak.joined"),
                    *(str(folder), str(times)),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError) as error:
        if not _may_have_namespaces():
            return Row(what=what, promise=promise, measured=f"not run: {error}", held=True)
        raise
    return Row(what=what, promise=promise, **json.loads(done.stdout.splitlines()[-1]))


def inside(folder: Path, times: int) -> dict[str, object]:
    """What was measured, and whether it held; in the first namespace."""
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    archive = asking.archive(folder, config_file=config)
    back: list[float] = []
    with TorchServe(folder / "server") as server:
        second = _join(archive, folder / "join.log")
        try:
            server.register(archive).raise_for_status()
            processes = {process.pid for process in server.processes() if process.name() == "java"}
            with asking.clients(asking.address(server), seconds=START_SECONDS) as answers:
                for _ in range(times):
                    answers.wait_right_after(time.monotonic())
                    _kill(second)
                    second = _join(archive, folder / "join.log")
                    back.append(answers.wait_right_after(time.monotonic(), START_SECONDS))
            same = processes == {one.pid for one in server.processes() if one.name() == "java"}
        finally:
            _kill(second)
    failed, wrong = answers.failed(), answers.wrong()
    unanswered = sum(answer.status == asking.UNANSWERED for answer in failed)
    statuses = Counter(answer.status for answer in failed)
    return {
        "measured": (
            f"right again in {min(back):.1f} to {max(back):.1f} s; of {len(answers.all)} requests "
            f"{len(failed)} got an error ({dict(statuses)}), {unanswered} no answer, {wrong} a "
            f"wrong one; the first machine's server {'went on' if same else 'ENDED'}"
        ),
        "held": max(back) < START_SECONDS and not wrong and not unanswered and same,
    }


def _join(archive: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                *(IP, "netns", "exec", SECOND, sys.executable, "-m", "torchrec_archiver", "join"),
                *(str(archive), "--rdzv-endpoint", ENDPOINT, "--nnodes", "2", "--node-rank", "1"),
            ],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _kill(second: subprocess.Popen[bytes]) -> None:
    """All of a machine at once."""
    every = [*psutil.Process(second.pid).children(recursive=True), psutil.Process(second.pid)]
    for process in every:
        process.send_signal(signal.SIGKILL)
    second.wait()
    psutil.wait_procs(every)


@contextmanager
def _namespaces() -> Iterator[None]:
    ends = {FIRST: "soak0", SECOND: "soak1"}
    try:
        for name in ends:
            _ip("netns", "add", name)
        peer = ("peer", "name", ends[SECOND], "netns", SECOND)
        _ip("link", "add", ends[FIRST], "netns", FIRST, "type", "veth", *peer)
        for name, end in ends.items():
            _ip("-n", name, "addr", "add", f"{ADDRESSES[name]}/24", "dev", end)
            for link in (end, "lo"):
                _ip("-n", name, "link", "set", link, "up")
        yield
    finally:
        for name in ends:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _may_have_namespaces() -> bool:
    return os.geteuid() == 0 and Path("/var/run/netns").exists()


def _ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(inside(Path(sys.argv[1]), int(sys.argv[2]))))
