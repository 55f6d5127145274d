"""Two replicas on a real Ray Serve answer as the engine in this process does; `make ray`."""

import gzip
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.environments import environment
from tests.support.command_line import build
from tests.support.paths import ROOT
from torchrec_archiver.answer import answering
from torchrec_handler.archive.format import TABLES
from torchrec_handler.front.torchserve.answers import http_answer
from torchrec_handler.message.predictor_pb2 import (
    FloatFeatures,
    PredictionRequest,
    PredictionResponse,
    SparseFeatures,
)
from torchrec_handler.serve.request import RawRequest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

JSON = "application/json"
ASKED = 60


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    assert build(store, "--archive-format", "no-archive") == 0
    return store / "ranking"


@pytest.fixture(scope="module")
def address(archive: Path) -> Iterator[str]:
    """Of a deployment with two replicas."""
    python = environment("ray") / "bin" / "python"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "handler", "archiver"))
    given = ("-m", "examples.ray.deployment", archive, "--port", str(port))
    with subprocess.Popen(
        [str(part) for part in (python, *given)],
        env={**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout
            yield next(line.strip() for line in server.stdout if line.startswith("http://"))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def requests() -> list[RawRequest]:
    """One in every format, one compressed, and two that are refused."""
    columns = json.dumps(
        {
            "float_features": [[1, 2, 3], [4, 5, 6]],
            "id_list_features.lengths": [1, 1, 2, 0, 1, 1],
            "id_list_features.values": [7, 8, 3, 1, 2, 4],
            "id_score_list_features.lengths": [1, 0, 0, 1],
            "id_score_list_features.values": [5, 6],
            "id_score_list_features.weights": [0.5, 2],
        }
    ).encode()
    message = PredictionRequest(
        batch_size=1,
        float_features=FloatFeatures(num_features=3, values=b"\0\0\x80\x3f" * 3),
        id_list_features=SparseFeatures(
            num_features=3, lengths=b"\1\0\0\0" * 3, values=b"\2\0\0\0" * 3
        ),
        id_score_list_features=SparseFeatures(num_features=2, lengths=b"\0" * 8),
    )
    rows = json.dumps({"instances": [{"float_features": [1, 2, 3], "user": [7]}]}).encode()
    return [
        RawRequest(body=columns, content_type=JSON),
        RawRequest(body=gzip.compress(columns), content_type=JSON, content_encoding="gzip"),
        RawRequest(body=rows, content_type=JSON),
        RawRequest(body=message.SerializeToString(), content_type="application/x-protobuf"),
        RawRequest(body=columns, content_type=JSON, accept="application/x-protobuf"),
        RawRequest(body=b"{}", content_type=JSON),
        RawRequest(body=columns, content_type=JSON, qualname="nothing"),
    ]


def test_replicas_answer_as_the_engine_does(archive: Path, address: str) -> None:
    asked = requests()
    with answering(archive) as here:
        # One by one: beside others of a batch a score may differ in its last bit.
        expected = [http_answer(here.engine.predict([each])[0]) for each in asked]
    assert [each.status for each in expected] == [200, 200, 200, 200, 200, 400, 404]
    with httpx.Client(base_url=address, timeout=60) as client:
        for each, answer in zip(asked, expected, strict=True):
            given = ask(client, each)
            kind = given.headers["content-type"]
            assert (given.status_code, kind) == (answer.status, answer.content_type)
            assert decoded(given.content, kind) == decoded(answer.body, kind)


def test_both_replicas_answer_and_batches_give_each_its_own(archive: Path, address: str) -> None:
    users = list(range(ASKED))
    bodies = [
        json.dumps({"instances": [{"float_features": [1, 2, 3], "user": [user % 50]}]}).encode()
        for user in users
    ]
    with answering(archive) as here:
        answers = here.engine.predict([RawRequest(body=body, content_type=JSON) for body in bodies])
        expected = [json.loads(http_answer(answer).body)["logit"] for answer in answers]
    with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(16) as threads:
        given = list(
            threads.map(
                lambda body: client.post("", content=body, headers={"content-type": JSON}), bodies
            )
        )
    assert len({answer.headers["x-replica"] for answer in given}) == 2
    for answer, logit in zip(given, expected, strict=True):
        assert answer.json()["logit"] == pytest.approx(logit, abs=1e-5)


def test_a_replica_whose_tables_were_changed_is_replaced(archive: Path, address: str) -> None:
    """It answers nothing more, Ray finds that out and starts another one."""
    (asked, *_) = requests()
    before: set[str] = set()
    after: set[str] = set()
    with httpx.Client(base_url=address, timeout=60) as client:
        while len(before) < 2:
            before.add(ask(client, asked).headers["x-replica"])
        os.utime(archive / TABLES)
        failed = 0
        deadline = time.monotonic() + 400
        while len(after) < 2 and time.monotonic() < deadline:
            answer = ask(client, asked)
            if answer.status_code == httpx.codes.OK:
                after |= {answer.headers["x-replica"]} - before
            else:
                failed += 1
            time.sleep(0.1)
    assert failed
    assert len(after) == 2


def ask(client: httpx.Client, asked: RawRequest) -> httpx.Response:
    return client.post("", content=bytes(asked.body), headers=headers(asked))


def decoded(body: bytes, content_type: str) -> object:
    """A map of a message is written in any order."""
    return json.loads(body) if content_type == JSON else PredictionResponse.FromString(body)


def headers(asked: RawRequest) -> dict[str, str]:
    given = {
        "content-type": asked.content_type,
        "content-encoding": asked.content_encoding,
        "accept": asked.accept,
        "x-torchrec-qualname": asked.qualname,
    }
    return {name: value for name, value in given.items() if value}
