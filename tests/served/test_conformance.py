"""Both servers give the same answers, bit for bit, and the same errors."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.support.factories.outputs import CandidatesFactory
from tests.support.kinds import archived
from tests.support.paths import ROOT
from tests.support.triton_client import Answer, Arrays, TritonClient
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving import settings, triton
from torchrec_archiver.serving.running import Running
from torchrec_handler.client import PROTOBUF
from torchrec_handler.message.predictor_pb2 import PredictionRequest, PredictionResponse

JSON = "application/json"
MOVIELENS: Mapping[str, Any] = {
    "float_features": [[0.1, 0.9, 0.2, 0.7, 0.5, -0.2]],
    "id_list_features.lengths": [1, 1, 1, 1, 1, 2, 1],
    "id_list_features.values": [42, 30, 1, 7, 50, 3, 5, 20],
}
TWO_ROWS: Mapping[str, Any] = {
    "float_features": [[0.1, 0.9, 0.2, 0.7, 0.5, -0.2], [0.3, 0.1, 0, 0.5, -1.5, 2]],
    "id_list_features.lengths": [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 2, 0, 1, 1],
    "id_list_features.values": [42, 43, 30, 1, 0, 7, 8, 50, 51, 3, 5, 20, 21],
}
SHARED = {**TWO_ROWS, "float_features": MOVIELENS["float_features"]}
CANDIDATES: Mapping[str, Any] = {
    "candidates.lengths": [2, 0, 3, 1],
    "candidates.values": [1, 2, 3, 4, 5, 39],
}
GOOD = {
    "one row": ("movielens", MOVIELENS, "forward"),
    "rows": ("movielens", TWO_ROWS, "forward"),
    "a block of a row for all rows": ("movielens", SHARED, "forward"),
    "a score an id": ("candidates", CANDIDATES, "forward"),
    "another method": ("candidates", CANDIDATES, "everything"),
}
VALUES = "id_list_features.values"
BAD: Mapping[str, Mapping[str, Any]] = {
    "an id out of its table": {**MOVIELENS, VALUES: [42, 30, 1, 7, 50, 3, 5, -1]},
    "lengths of other rows": {**MOVIELENS, "id_list_features.lengths": [1] * 9},
    "too few ids": {**MOVIELENS, VALUES: [42]},
    "a negative length": {**MOVIELENS, "id_list_features.lengths": [1, 1, 1, 1, 1, -2, 1]},
    "an input that is missing": {"float_features": MOVIELENS["float_features"]},
    "too many rows": {**MOVIELENS, "float_features": [[0.0] * 6] * 20_000},
}
WAYS = ("json", "binary", "grpc")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive, _ = archived(CandidatesFactory, tmp_path_factory.mktemp("store"), "candidates")
    return archive


@pytest.fixture(scope="module")
def other(movielens_archive: Path, candidates: Path) -> Iterator[Running]:
    """Triton with the archives that the other server has."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        ports = settings.free_ports(settings.TRITON_PORTS)
        with triton.running([movielens_archive, candidates], ports=ports) as running:
            yield running
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def client(other: Running) -> Iterator[TritonClient]:
    with TritonClient(other.url, other.ports["gRPC"]) as made:
        yield made


@pytest.fixture(scope="module")
def first(movielens: TorchServe, candidates: Path) -> Iterator[TorchServe]:
    answer = movielens.register(candidates)
    assert answer.is_success, answer.text
    yield movielens
    movielens.unregister("candidates")


def arrays(document: Mapping[str, Any]) -> Arrays:
    integers = ("lengths", "values")
    return {
        name: np.array(value, np.int32 if name.endswith(integers) else np.float32)
        for name, value in document.items()
    }


def same(answer: Answer, expected: Mapping[str, Any]) -> None:
    assert answer.error == ""
    assert {name: array.tolist() for name, array in answer.outputs.items()} == {
        name: np.array(value, np.float32).tolist() for name, value in expected.items()
    }


@pytest.mark.parametrize("case", GOOD)
def test_answers(case: str, first: TorchServe, client: TritonClient) -> None:
    model, document, qualname = GOOD[case]
    answer = first.predict(model, document, headers={"X-TorchRec-Qualname": qualname})
    assert answer.is_success, answer.text
    expected = answer.json()
    parameters = {} if qualname == "forward" else {"qualname": qualname}
    for way in WAYS:
        same(getattr(client, way)(model, arrays(document), **parameters), expected)
    told = client.body(model, json.dumps(document).encode(), content_type=JSON, **parameters)
    assert told.outputs["body"].tolist() == [answer.content]
    assert told.outputs["content_type"].tolist() == [JSON.encode()]


def test_a_message_of_torchrec(first: TorchServe, client: TritonClient) -> None:
    given = arrays(TWO_ROWS)
    message = PredictionRequest(batch_size=2)
    message.float_features.num_features = 6
    message.float_features.values = given["float_features"].tobytes()
    message.id_list_features.num_features = 7
    message.id_list_features.lengths = given["id_list_features.lengths"].tobytes()
    message.id_list_features.values = given["id_list_features.values"].tobytes()
    body = message.SerializeToString()
    answer = client.body("movielens", body, content_type=PROTOBUF)
    (content,) = answer.outputs["body"].tolist()
    expected = first.predict("movielens", TWO_ROWS).json()["default"]
    found = PredictionResponse.FromString(content).predictions["default"].data
    assert np.array(found, np.float32).tolist() == np.array(expected, np.float32).tolist()


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str, first: TorchServe, client: TritonClient) -> None:
    document = BAD[case]
    refused = first.predict("movielens", document)
    message = refused.json()["message"]
    assert refused.status_code in {400, 413}
    for way in ("json", "binary"):
        answer = getattr(client, way)("movielens", arrays(document))
        assert (answer.status, answer.error) == (400, message)
    answer = client.grpc("movielens", arrays(document))
    assert (answer.status, answer.error) == ("StatusCode.INVALID_ARGUMENT", message)
    told = client.body("movielens", json.dumps(document).encode())
    assert told.error == message


def test_a_method_that_is_not_there(first: TorchServe, client: TritonClient) -> None:
    refused = first.predict("movielens", MOVIELENS, headers={"X-TorchRec-Qualname": "rank"})
    answer = client.json("movielens", arrays(MOVIELENS), qualname="rank")
    assert (refused.status_code, refused.json()["message"]) == (answer.status, answer.error)


@pytest.mark.parametrize(
    ("given", "parameters", "message"),
    [
        (
            {"body": [b"{}"], **MOVIELENS},
            {},
            (
                "body: received it beside float_features, id_list_features.lengths, "
                "id_list_features.values, expected it alone"
            ),
        ),
        (MOVIELENS, {"qualname": 3}, "parameters.qualname: received 3, expected a string"),
        (
            {"body": [b"a,b"]},
            {"content_type": "Text/CSV; charset=utf-8"},
            (
                "received content type 'text/csv', expected one of application/json, text/json, "
                "application/x-protobuf, application/protobuf, application/octet-stream"
            ),
        ),
    ],
)
def test_what_only_triton_can_be_sent(
    given: dict[str, Any], parameters: dict[str, Any], message: str, client: TritonClient
) -> None:
    document = dict(given)
    body = document.pop("body", None)
    tensors = dict(arrays(document))
    if body is not None:
        tensors["body"] = np.array(body, np.object_)
    answer = client.grpc("movielens", tensors, **parameters)
    assert answer.error == message


def test_what_triton_refuses_by_the_configuration(client: TritonClient) -> None:
    answer = client.json("movielens", arrays({**MOVIELENS, "float_features": [[0.1, 0.9]]}))
    assert (answer.status, answer.error.partition(" NOTE: ")[0]) == (
        400,
        (
            "[request id: <id_unknown>] unexpected shape for input 'float_features' for model "
            "'movielens'. Expected [-1,-1,6], got [1,1,2]."
        ),
    )


def test_tensors_are_of_one_request(client: TritonClient) -> None:
    answer = client.json("movielens", arrays(MOVIELENS), first=2)
    assert answer.error == (
        "float_features: received shape 2 x 1 x 6, expected 1 x …: a first axis of 1, for the "
        "request"
    )


def test_metadata_is_the_signatures(client: TritonClient) -> None:
    told = client.get("/v2/models/movielens")
    assert [(entry["name"], entry["shape"]) for entry in told["inputs"]] == [
        ("float_features", [-1, -1, 6]),
        ("id_list_features.lengths", [-1, -1]),
        ("id_list_features.values", [-1, -1]),
        ("body", [-1, 1]),
    ]


def test_bad_requests_among_64_clients_fail_alone(client: TritonClient, other: Running) -> None:
    """One in ten is bad."""
    kinds = [MOVIELENS, TWO_ROWS, SHARED]
    good = [
        client.json("movielens", arrays(document)).outputs["default"].tolist() for document in kinds
    ]
    bad = list(BAD.values())

    def ask(number: int) -> None:
        with TritonClient(other.url, other.ports["gRPC"]) as own:
            for at in range(number, number + 20):
                way = getattr(own, WAYS[at % 2])
                if at % 10 == 0:
                    answer = way("movielens", arrays(bad[at % len(bad)]))
                    assert answer.status == 400
                else:
                    answer = way("movielens", arrays(kinds[at % 3]))
                    found = answer.outputs["default"]
                    # Other rows of a batch change the order in which a row's numbers are added.
                    np.testing.assert_allclose(found, good[at % 3], rtol=0, atol=1e-6)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(64)))


def test_an_instance_that_was_killed_comes_back(client: TritonClient, other: Running) -> None:
    before = client.json("candidates", arrays(CANDIDATES)).outputs["scores"].tolist()
    (stub,) = instances(other, "candidates")
    os.kill(stub.pid, signal.SIGKILL)
    end = time.monotonic() + 100
    while (answer := client.json("candidates", arrays(CANDIDATES))).error:
        assert answer.error == "Stub process 'candidates_0_0' is not healthy."
        assert time.monotonic() < end
        time.sleep(0.2)
    assert answer.outputs["scores"].tolist() == before
    (again,) = instances(other, "candidates")
    assert again.pid != stub.pid
    assert not client.json("movielens", arrays(MOVIELENS)).error


def instances(other: Running, model: str) -> list[psutil.Process]:
    return [
        process
        for process in other.frontend.processes()
        if any("python_backend_stub" in part for part in process.cmdline()[:1])
        and f"/{model}/" in " ".join(process.cmdline())
    ]
