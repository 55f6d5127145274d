"""A model on several ranks behind a real TorchServe, which starts torchrun."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.archives import good
from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe

EXPECTED = pytest.approx(good.expected_scores().tolist(), abs=1e-5)
SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """One of these tests' own: a model's name for its ranks depends on those before it."""
    folder = tmp_path_factory.mktemp("torchserve")
    with TorchServe(folder, environment={"PYTHONPATH": str(ROOT)}) as running:
        yield running


def build(folder: Path, name: str, torchrun: str) -> Path:
    config = folder / f"{name}.yaml"
    config.write_text(f"parallelType: tp\ndeviceType: cpu\ntorchrun: {torchrun}\n")
    return good.build(folder, model_name=name, config_file=config)


def scores(server: TorchServe, name: str) -> tuple[int, Any]:
    answer = server.predict(name, good.request())
    return answer.status_code, answer.json().get("logit")


def ranks(server: TorchServe) -> dict[str, psutil.Process]:
    """The ranks that torchrun, in a session of its own, started."""
    every = {
        child.pid: child
        for process in server.processes()
        for child in process.children(recursive=True)
    }
    found = [one for one in every.values() if "RANK" in one.environ()]
    return {one.environ()["RANK"]: one for one in found}


def test_a_joined_machine_holds_a_part(server: TorchServe, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    endpoint = f"127.0.0.1:{port}"
    static = f'nnodes: 2, nproc-per-node: 1, rdzv-backend: static, rdzv-endpoint: "{endpoint}"'
    archive = build(tmp_path, "joined", f"{{{static}}}")
    joined = subprocess.Popen(
        [
            *(sys.executable, "-m", "torchrec_archiver", "join", str(archive)),
            *("--rdzv-endpoint", endpoint, "--nnodes", "2", "--node-rank", "1"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        answer = server.register(archive)
        assert answer.is_success, answer.text
        assert scores(server, "joined") == (200, EXPECTED)
    finally:
        server.unregister("joined")
        joined.send_signal(signal.SIGINT)
        said, _ = joined.communicate(timeout=60)
    assert joined.returncode == 0
    assert said.splitlines()[:2] == [
        f"Joining {endpoint} as machine 1 of 2, with joined 1.0; Ctrl-C stops it",
        "rank 1 of 2 looks up for rank 0",
    ]
    assert said.splitlines()[-1] == "Stopped; nothing is left of it"


def test_ranks_answer_as_one_process_and_again_once_one_was_killed(
    server: TorchServe, tmp_path: Path
) -> None:
    archive = build(tmp_path, "spread", "{nproc-per-node: 2}")
    answer = server.register(archive)
    assert answer.is_success, answer.text
    try:
        assert scores(server, "spread") == (200, EXPECTED)
        started = ranks(server)
        assert sorted(started) == ["0", "1"]
        started["1"].send_signal(signal.SIGKILL)
        statuses: list[int] = []
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and 200 not in statuses[-1:]:
            status, received = scores(server, "spread")
            statuses.append(status)
            if status == 200 and ranks(server).keys() == started.keys():
                assert received == EXPECTED
        assert statuses[-1] == 200
        assert set(statuses) <= {200, 500, 503}
        assert ranks(server)["1"].pid != started["1"].pid
    finally:
        server.unregister("spread")
