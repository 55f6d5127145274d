"""What Triton's clients can do wrong or ask for, and what becomes of an instance meanwhile."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.support.conforming import build
from tests.support.factories.fuzzed import EMBEDDED, WIDTH, FuzzedPredictFactory
from tests.support.factories.outputs import CandidatesFactory
from tests.support.line import Line, drawn
from tests.support.triton_client import WAYS, Arrays, TritonClient
from tests.support.triton_served import serving
from torchrec_archiver.serving import triton
from torchrec_archiver.serving.running import Running
from torchrec_handler.archive.format import INDEX, Index, sha256
from torchrec_handler.errors import ServeError
from torchrec_handler.front.series import GAUGES, METRICS, UPDATES

ROW: Arrays = {
    "float_features": np.array([[0.1, 0.9, 0.2]], np.float32),
    "id_list_features.lengths": np.array([1, 2, 0], np.int32),
    "id_list_features.values": np.array([42, 30, 1], np.int32),
    "id_score_list_features.lengths": np.array([1, 1], np.int32),
    "id_score_list_features.values": np.array([7, 8], np.int32),
    "id_score_list_features.weights": np.array([0.5, 2], np.float32),
    "embedding_features": np.ones((len(EMBEDDED), 1, WIDTH), np.float32),
}
CANDIDATES: Arrays = {
    "candidates.lengths": np.array([2, 0, 3, 1], np.int32),
    "candidates.values": np.array([1, 2, 3, 4, 5, 39], np.int32),
}
VALUES = "id_list_features.values"
LENGTHS = "id_list_features.lengths"
NONE = np.empty(0, np.int32)


def row(**changed: Any) -> dict[str, Any]:
    return {**ROW, **{name.replace("__", "."): value for name, value in changed.items()}}


def body(*contents: bytes) -> dict[str, Any]:
    return {"body": np.array(contents, np.object_)}


BAD: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "an id out of its table": (
        row(id_list_features__values=np.array([50, 30, 1], np.int32)),
        {},
        "id_list_features.values[0]: received id 50 of feature 'user', expected 0 to 49",
    ),
    "no number": (
        row(float_features=np.array([[0.1, np.nan, 0.2]], np.float32)),
        {},
        "float_features[0][1]: received nan, expected a finite float32",
    ),
    "a weight that is no number": (
        row(id_score_list_features__weights=np.array([0.5, np.inf], np.float32)),
        {},
        "id_score_list_features.weights[1]: received inf, expected a finite float32",
    ),
    "no rows": (
        row(
            float_features=ROW["float_features"][:0],
            id_list_features__lengths=NONE,
            id_list_features__values=NONE,
        ),
        {},
        "float_features: received shape 0 x 3, expected B rows x 3 features",
    ),
    "too many ids": (
        row(id_list_features__values=np.zeros(2**20 + 1, np.int32)),
        {},
        (
            "id_list_features.values: received 1048577 elements, expected at most 1048576 "
            "(limits.ids_per_request)"
        ),
    ),
    "a body beside tensors": (
        {**body(b"{}"), "float_features": ROW["float_features"]},
        {},
        "body: received it beside float_features, expected it alone",
    ),
    "an empty body": (body(b""), {}, "body: received nothing, expected a request"),
    "a body that is compressed otherwise": (
        body(b"{}"),
        {"content_encoding": "gzip"},
        "body: not valid gzip (incorrect header check)",
    ),
    "a type nobody reads": (
        body(b"a,b"),
        {"content_type": "Text/CSV; charset=utf-8"},
        (
            "received content type 'text/csv', expected one of application/json, text/json, "
            "application/x-protobuf, application/protobuf, application/octet-stream"
        ),
    ),
    "a method that is not there": (
        row(),
        {"qualname": "__init__"},
        "qualname: received '__init__', expected one of add, forward, negative",
    ),
    "a parameter that is no string": (
        row(),
        {"qualname": 3},
        "parameters.qualname: received 3, expected a string",
    ),
    "arguments as tensors": (
        row(),
        {"qualname": "add"},
        "add: missing a required argument: 'first'",
    ),
}


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deltas")


@pytest.fixture(scope="module")
def archives(deltas: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    store = tmp_path_factory.mktemp("store")
    return [
        build(FuzzedPredictFactory, store, "fuzzed"),
        build(CandidatesFactory, store, "candidates"),
        build(CandidatesFactory, store, "changing", {"updates": {"folder": str(deltas)}}),
    ]


@pytest.fixture(scope="module")
def running(archives: list[Path]) -> Iterator[Running]:
    with serving(archives) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[TritonClient]:
    with TritonClient(running.url, running.ports["gRPC"]) as made:
        yield made


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_request(case: str, client: TritonClient) -> None:
    arrays, parameters, message = BAD[case]
    answer = client.grpc("fuzzed", arrays, **parameters)
    code = "NOT_FOUND" if case == "a method that is not there" else "INVALID_ARGUMENT"
    assert (answer.status, answer.error) == (f"StatusCode.{code}", message)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            row(float_features=np.array([[0.1, 0.9]], np.float32)),
            (
                "unexpected shape for input 'float_features' for model 'fuzzed'. "
                "Expected [-1,-1,3], got [1,1,2]."
            ),
        ),
        (
            row(float_features=np.array([[0.1, 0.9, 0.2]])),
            (
                "inference input 'float_features' data-type is 'FP64', but model 'fuzzed' expects "
                "'FP32'"
            ),
        ),
        (
            row(id_list_features__lengths=ROW[LENGTHS].reshape(3, 1)),
            (
                "unexpected shape for input 'id_list_features.lengths' for model 'fuzzed'. "
                "Expected [-1,-1], got [1,3,1]."
            ),
        ),
        (
            body(b"{}", b"{}"),
            "unexpected shape for input 'body' for model 'fuzzed'. Expected [-1,1], got [1,2].",
        ),
    ],
)
def test_what_triton_refuses_by_the_configuration(
    arrays: Arrays, message: str, client: TritonClient
) -> None:
    answer = client.grpc("fuzzed", arrays)
    told, _, _ = answer.error.partition(" NOTE: ")
    assert (answer.status, told) == (
        "StatusCode.INVALID_ARGUMENT",
        f"[request id: <id_unknown>] {message}",
    )


def test_tensors_are_of_one_request(client: TritonClient) -> None:
    answer = client.json("fuzzed", {"float_features": ROW["float_features"]}, first=2)
    assert (answer.status, answer.error) == (
        400,
        (
            "float_features: received shape 2 x 1 x 3, expected 1 x …: a first axis of 1, for the "
            "request"
        ),
    )


def test_outputs_that_are_wanted(client: TritonClient) -> None:
    """Triton itself knows the outputs of all methods, and of bodies, alike."""
    answer = client.grpc("fuzzed", ROW, wanted=["pairs"])
    assert list(answer.outputs) == ["pairs"]
    for wanted, arrays, given in (
        ("body", ROW, "default, pairs"),
        ("pairs", body(b'{"first": 1, "second": 2}'), "body, content_type"),
    ):
        parameters = {} if arrays is ROW else {"qualname": "add"}
        answer = client.grpc("fuzzed", arrays, wanted=[wanted], **parameters)
        assert (answer.status, answer.error) == (
            "StatusCode.INVALID_ARGUMENT",
            f"outputs: received {wanted}, expected one of {given}",
        )


def test_metadata_is_the_signatures(client: TritonClient) -> None:
    told = client.get("/v2/models/fuzzed")
    assert [(entry["name"], entry["shape"]) for entry in told["inputs"]] == [
        ("float_features", [-1, -1, 3]),
        ("id_list_features.lengths", [-1, -1]),
        ("id_list_features.values", [-1, -1]),
        ("id_score_list_features.lengths", [-1, -1]),
        ("id_score_list_features.values", [-1, -1]),
        ("id_score_list_features.weights", [-1, -1]),
        ("embedding_features", [-1, 2, -1, 4]),
        ("body", [-1, 1]),
    ]


def test_bad_requests_among_64_clients_fail_alone(client: TritonClient, running: Running) -> None:
    """One in ten is bad, in each of the ways there are."""
    good = [ROW, row(float_features=np.zeros((1, 3), np.float32))]
    expected = [client.binary("fuzzed", arrays).outputs["default"] for arrays in good]
    bad = list(BAD.values())

    def ask(number: int) -> None:
        with TritonClient(running.url, running.ports["gRPC"]) as own:
            for at in range(number, number + 20):
                if at % 10 == 0:
                    arrays, parameters, message = bad[(at // 10 + number) % len(bad)]
                    assert own.grpc("fuzzed", arrays, **parameters).error == message
                else:
                    answer = getattr(own, WAYS[at % len(WAYS)])("fuzzed", good[at % 2])
                    # Other rows of a batch change the order in which a row's numbers are added.
                    np.testing.assert_allclose(
                        answer.outputs["default"], expected[at % 2], rtol=0, atol=1e-5
                    )

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(64)))


def test_metrics_are_those_of_every_server(client: TritonClient, running: Running) -> None:
    """Beside Triton's own; starting it has asked once."""
    bad = {**CANDIDATES, "candidates.values": np.array([1, 2, 40, 4, 5, 39], np.int32)}
    for arrays in (CANDIDATES, CANDIDATES, bad):
        client.binary("candidates", arrays)
    expected = {
        series("requests_total"): 4,
        series("rows_total"): 5,
        series("errors_total", Type="InvalidRequest"): 1,
        series("errors_total", Type="PredictError"): 0,
        series("out_of_range_ids_total", Feature="genre"): 1,
        series("stage_seconds_count", Stage="read"): 4,
        series("batch_rows_bucket", le="1"): 1,
        series("batch_rows_bucket", le="+Inf"): 3,
    }
    end = time.monotonic() + 30
    while {name: told(running)[name] for name in expected} != expected:
        assert time.monotonic() < end, {name: told(running)[name] for name in expected}
        time.sleep(0.2)
    of_it = [name for name in told(running) if 'ModelName="candidates"' in name]
    assert {name.partition("{")[0] for name in of_it} == set(METRICS)


def test_rows_that_change_are_served_and_told(
    client: TritonClient, running: Running, archives: list[Path], deltas: Path
) -> None:
    *_, archive = archives
    before = client.binary("changing", CANDIDATES).outputs["scores"]
    index = Index.loads((archive / INDEX).read_text(encoding="utf-8"))
    (entry,) = (entry for entry in index.tables if entry.name == "t_movie")
    line = Line(deltas, sha256(archive / INDEX))
    line.publish([drawn(entry, entry.rows, np.random.default_rng(1))])
    sequence = series("update_sequence", ModelName="changing")
    end = time.monotonic() + 30
    while told(running)[sequence] != 1:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert not np.array_equal(client.binary("changing", CANDIDATES).outputs["scores"], before)
    names = {name.partition("{")[0] for name in told(running) if 'ModelName="changing"' in name}
    assert names == {*METRICS, *UPDATES, *GAUGES}


def series(name: str, **more: str) -> str:
    """As Triton writes it, which sorts labels by their names."""
    labels = {"ModelName": "candidates", "ModelVersion": "1.0", **more}
    told = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
    return f"torchrec_{name}{{{told}}}"


def told(running: Running) -> dict[str, float]:
    """Series -> value."""
    content = httpx.get(f"http://127.0.0.1:{running.ports['metrics']}/metrics").text
    lines = [line.rpartition(" ") for line in content.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_an_instance_that_was_killed_comes_back(client: TritonClient, running: Running) -> None:
    before = client.json("candidates", CANDIDATES).outputs["scores"].tolist()
    asked = told(running)[series("requests_total")]
    (stub,) = instances(running, "candidates")
    os.kill(stub.pid, signal.SIGKILL)
    end = time.monotonic() + 100
    while (answer := client.json("candidates", CANDIDATES)).error:
        assert answer.error == "Stub process 'candidates_0_0' is not healthy."
        assert time.monotonic() < end
        time.sleep(0.2)
    assert answer.outputs["scores"].tolist() == before
    (again,) = instances(running, "candidates")
    assert again.pid != stub.pid
    assert told(running)[series("requests_total")] >= asked
    assert not client.json("fuzzed", ROW).error


def instances(running: Running, model: str) -> list[psutil.Process]:
    return [
        process
        for process in running.frontend.processes()
        if any("python_backend_stub" in part for part in process.cmdline()[:1])
        and f"/{model}/" in " ".join(process.cmdline())
    ]


def test_a_triton_that_would_misread_numpys_arrays(
    archives: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel's with numpy 2 in its environment, which `serve` gives it none of."""
    monkeypatch.setattr(triton, "_python", lambda _: Path(sys.executable).parent)
    with pytest.raises(ServeError) as raised, serving(archives[1:2], seconds=60):
        pass
    assert str(raised.value) == (
        "Triton ended before candidates 1.0 was loaded: LoadError: this Triton's python backend "
        "needs numpy 1, and would misread what numpy 2 holds; take Triton 24.12 or newer, or "
        "numpy 1.26 in the environment that it runs in"
    )


def test_the_wheel_without_its_numpy(
    archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "NUMPY_FOLDER", tmp_path / "numpy-1")
    with pytest.raises(ServeError) as raised, serving(archives):
        pass
    assert str(raised.value) == (
        "Triton: the wheel's python backend needs numpy 1 beside this Python's numpy 2; make "
        f"triton, or pip install --no-deps --target {tmp_path / 'numpy-1'} numpy==1.26.4"
    )
