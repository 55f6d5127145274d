"""What a worker keeps beside its answers, in a real TorchServe: refusals, requests, readiness."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.factories.slow import FOLDER, GO, SlowFactory
from tests.support.paths import ROOT
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe

NAME = "slow"
COLUMNS = {"float_features": [[1, 2]]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where requests are recorded."""
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def slow(
    server: TorchServe, recorded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TorchServe]:
    """Two workers, one of which is ready, and which record every request."""
    folder = tmp_path_factory.mktemp("slow")
    config = {"minWorkers": 2, "maxWorkers": 2, "torchrec": {"record": {"rate": 1.0}}}
    config["torchrec"]["record"]["folder"] = str(recorded)  # type: ignore[index]
    (folder / "model-config.yaml").write_text(yaml.safe_dump(config))
    archive = build_archive(
        model_name=NAME,
        version="1.0",
        factory=SlowFactory,
        config_file=folder / "model-config.yaml",
        export_path=folder,
    )
    (server.temp / FOLDER).mkdir()
    answer = server.register(archive, initial_workers=2, synchronous="false")
    assert answer.is_success, answer.text
    yield server
    (server.temp / FOLDER / GO).touch()
    server.unregister(NAME)


def soon(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + 120
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def both_ready(server: TorchServe) -> bool:
    """Let the second worker go on, and wait for it."""
    (server.temp / FOLDER / GO).touch()
    return soon(lambda: ready(server) == 2)


def ready(server: TorchServe) -> int:
    """How many workers are."""
    answer = server.management.get(f"/models/{NAME}")
    workers = answer.json()[0]["workers"] if answer.is_success else []
    return sum(worker["status"] == "READY" for worker in workers)


def probe(server: TorchServe) -> bool:
    """The page's own command, with this server's address and model."""
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(readinessProbe:.*?)```", page, re.DOTALL)
    program, option, code = yaml.safe_load(block)["readinessProbe"]["exec"]["command"]
    assert (program, option) == ("python3", "-c")
    address = str(server.management.base_url).rstrip("/")
    own = code.replace("http://127.0.0.1:8081", address).replace("movielens", NAME)
    done = subprocess.run([sys.executable, "-c", own], check=False, capture_output=True, text=True)
    assert done.returncode in {0, 1}
    assert not done.stderr, done.stderr
    return done.returncode == 0


def test_readiness_waits_for_every_wanted_worker(slow: TorchServe) -> None:
    assert soon(lambda: ready(slow) == 1)
    assert slow.inference.get("/ping").json() == {"status": "Healthy"}
    assert not probe(slow)
    assert both_ready(slow)
    assert probe(slow)


def test_a_refused_request_is_found_by_its_id(slow: TorchServe) -> None:
    assert both_ready(slow)
    answer = slow.predict(NAME, {"float_features": [[1]]})
    body = answer.json()
    said = f"{body['code']} {body['type']}, request {answer.headers['x-request-id']}"
    assert slow.logs_soon(f"Refused: {said}, forward of {NAME}: {body['message']}"), slow.log()


def test_recorded_requests_are_samples_of_the_next_build(
    slow: TorchServe, recorded: Path, tmp_path: Path
) -> None:
    assert both_ready(slow)
    for number in range(1, 5):
        assert slow.predict(NAME, {"float_features": [[number, 1]] * number}).is_success
    slow.predict(NAME, {"instances": [1, 2]}, qualname="first")

    def lines() -> list[bytes]:
        files = sorted(recorded.glob(f"{NAME}-1.0-forward-*.jsonl"))
        return [line for path in files for line in path.read_bytes().splitlines()]

    assert soon(lambda: len(lines()) == 4)
    assert not list(recorded.glob("*-first-*"))
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(lines()))
    archive = build_archive(
        model_name="next",
        version="1.0",
        factory=SlowFactory,
        samples=tmp_path / "samples.jsonl",
        export_path=tmp_path,
    )
    assert archive.exists()
