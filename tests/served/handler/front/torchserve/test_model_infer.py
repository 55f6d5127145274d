"""Open Inference Protocol over a real TorchServe's gRPC: what arrives, and that no worker dies."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.factories.simple import RawIds, seeded
from tests.support.factories.typed import TypedFactory
from tests.support.grpc_client import GrpcClient, OpenInferenceClient
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe

NAME = "typed"


@pytest.fixture(scope="module")
def typed(server: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """The server with a model that answers every type."""
    archive = build_archive(
        model_name=NAME,
        version="2.7",
        factory=TypedFactory,
        export_path=tmp_path_factory.mktemp("typed"),
    )
    answer = server.register(archive)
    assert answer.is_success, answer.text
    before = [worker["pid"] for worker in server.workers(NAME)]
    yield server
    # Of all that is asked here nothing ends a worker.
    assert [worker["pid"] for worker in server.workers(NAME)] == before
    server.unregister(NAME)


@pytest.fixture(scope="module")
def client(
    typed: TorchServe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenInferenceClient]:
    made = OpenInferenceClient(typed.grpc_address, tmp_path_factory.mktemp("open_inference"))
    yield made
    made.close()


def tensor(datatype: str, rows: list[list[float]], contents: str | None) -> dict[str, Any]:
    """The model's one input; None for a tensor without contents."""
    values = [value for row in rows for value in row]
    return {
        "name": "float_features",
        "datatype": datatype,
        "shape": [len(rows), 2],
        **({"contents": {contents: values}} if contents else {}),
    }


def outputs(answer: Any) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Name -> datatype, shape, and the contents that are filled."""
    found = {}
    for output in answer.outputs:
        filled = [list(values) for _, values in output.contents.ListFields()]
        assert len(filled) <= 1
        found[output.name] = (output.datatype, list(output.shape), filled[0] if filled else [])
    return found


def error(answer: Any) -> dict[str, Any]:
    """The error that an answer holds."""
    ((name, (datatype, shape, contents)),) = outputs(answer).items()
    assert (name, datatype, shape) == ("error", "BYTES", [1])
    body: dict[str, Any] = json.loads(contents[0])
    assert set(body) == {"code", "type", "message"}
    return body


def test_answers_of_every_type_arrive(client: OpenInferenceClient) -> None:
    """Without id and version too; -1 has no logarithm, 0 one that is no number."""
    rows = [[1.0, 2.0], [-1.0, 0.0], [0.0, 0.0]]
    answer = client.call(
        "ModelInfer", model_name=NAME, inputs=[tensor("FP32", rows, "fp32_contents")]
    )
    assert (answer.id, answer.model_name, answer.model_version) == ("", NAME, "2.7")
    found = outputs(answer)
    datatype, shape, logarithms = found.pop("log")
    assert (datatype, shape) == ("FP32", [3])
    assert math.isclose(logarithms[0], math.log(3), rel_tol=1e-6)
    assert [math.isnan(value) for value in logarithms] == [False, True, True]
    assert found == {
        "default": ("FP32", [3], [3.0, -1.0, 0.0]),
        "double": ("FP64", [3], [3.0, -1.0, 0.0]),
        "long": ("INT64", [3], [3, -1, 0]),
        "int": ("INT32", [3], [3, -1, 0]),
        "byte": ("UINT8", [3], [3, 255, 0]),
        "flag": ("BOOL", [3], [True, False, False]),
        "pair": ("FP32", [3, 2], [3.0, -3.0, -1.0, 1.0, 0.0, 0.0]),
    }


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
        ("INT8", "int_contents"),
        ("INT16", "int_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("UINT8", "uint_contents"),
        ("UINT16", "uint_contents"),
        ("UINT32", "uint_contents"),
        ("UINT64", "uint64_contents"),
    ],
)
def test_contents_of_every_type_are_taken(
    client: OpenInferenceClient, datatype: str, contents: str
) -> None:
    answer = client.call(
        "ModelInfer",
        model_name=NAME,
        model_version="2.7",
        id="query-7",
        inputs=[tensor(datatype, [[1, 2], [3, 4]], contents)],
    )
    assert answer.id == "query-7"
    assert outputs(answer)["default"] == ("FP32", [2], [3.0, 7.0])


def test_strings_are_hashed_as_over_http(
    server: TorchServe, client: OpenInferenceClient, tmp_path: Path
) -> None:
    archive = build_archive(
        model_name="raw",
        version="1.0",
        factory=RawIds,
        weights=seeded().state_dict(),
        export_path=tmp_path,
    )
    answer = server.register(archive)
    assert answer.is_success, answer.text
    given: dict[str, tuple[str, str, list[int], list[Any]]] = {
        "float_features": ("FP32", "fp32_contents", [2, 2], [0.5, 1, 2, -1]),
        "id_list_features.lengths": ("INT32", "int_contents", [4], [1, 2, 0, 0]),
        "id_list_features.values": ("BYTES", "bytes_contents", [3], ["u-1", "é", ""]),
        "id_score_list_features.lengths": ("INT32", "int_contents", [2], [1, 0]),
        "id_score_list_features.values": ("BYTES", "bytes_contents", [1], ["news"]),
        "id_score_list_features.weights": ("FP32", "fp32_contents", [1], [1.5]),
        "embedding_features": ("FP32", "fp32_contents", [2, 2, 4], [0.5] * 16),
    }
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "contents": {field: [one.encode() if isinstance(one, str) else one for one in values]},
        }
        for name, (datatype, field, shape, values) in given.items()
    ]
    called = outputs(client.call("ModelInfer", model_name="raw", inputs=inputs))
    columns = {
        name: np.reshape(np.array(values, object), shape).tolist()
        for name, (_, _, shape, values) in given.items()
    }
    expected = server.predict("raw", columns).json()
    server.unregister("raw")
    np.testing.assert_allclose(called["default"][2], expected["default"], atol=1e-6)
    assert called["default"][2][0] != called["default"][2][1]


def test_errors_arrive_with_the_body_that_they_have_over_http(client: OpenInferenceClient) -> None:
    wrong = {**tensor("FP32", [[1, 2]], "fp32_contents"), "name": "other"}
    answer = client.call("ModelInfer", model_name=NAME, inputs=[wrong])
    assert error(answer) == {
        "code": 400,
        "type": "InvalidRequest",
        "message": 'inputs[0].name: received "other", expected one of float_features',
    }
    assert (answer.model_name, answer.model_version) == (NAME, "2.7")


def test_what_torchserve_does_not_hand_on_is_said(client: OpenInferenceClient) -> None:
    raw = np.array([1, 2], "<f4").tobytes()
    given: list[dict[str, Any]] = [
        {"inputs": [tensor("FP32", [[1, 2]], None)], "raw_input_contents": [raw]},
        {"inputs": [tensor("FP16", [[1, 2]], None)], "raw_input_contents": [raw[:4]]},
    ]
    for fields in given:
        body = error(client.call("ModelInfer", model_name=NAME, **fields))
        assert body["code"] == 400
        assert body["message"].endswith(
            "; TorchServe hands on contents, but neither raw_input_contents nor contents of FP16 "
            "and BF16"
        ), body


def test_good_and_bad_calls_at_once_each_get_their_own(client: OpenInferenceClient) -> None:
    def ask(at: int) -> Any:
        datatype = "FP32" if at % 3 else "BYTES"
        contents = "fp32_contents" if at % 3 else None
        fields = {"inputs": [tensor(datatype, [[at, 1]], contents)], "id": str(at)}
        return client.call("ModelInfer", model_name=NAME, **fields)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(96)))
    for at, answer in enumerate(answers):
        if at % 3:
            assert answer.id == str(at)
            assert outputs(answer)["default"][2] == [at + 1.0]
        else:
            assert error(answer)["code"] == 400


def test_the_protocols_other_calls_answer(client: OpenInferenceClient) -> None:
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready
    assert client.call("ModelReady", name=NAME).ready
    metadata = client.call("ModelMetadata", name=NAME)
    assert (metadata.name, list(metadata.versions)) == (NAME, ["2.7"])
    for fields in ({"model_name": "absent"}, {"model_name": ""}):
        with pytest.raises(grpc.RpcError):
            client.call("ModelInfer", **fields)


def test_a_call_of_20_mb_is_answered(
    client: OpenInferenceClient, typed: TorchServe, tmp_path: Path
) -> None:
    """max_request_size holds for gRPC too, and a client may send more than it receives."""
    rows = 10_000
    columns = json.dumps({"float_features": [[1.0, 2.0]] * rows}).encode()
    predictions = GrpcClient(typed.grpc_address, tmp_path)
    answer = json.loads(predictions.predict(NAME, data=columns.ljust(20_000_000)))
    predictions.close()
    assert answer["default"] == [3.0] * rows
    padding = {"padding": client.messages.InferParameter(string_param="x" * 20_000_000)}
    many = [tensor("FP32", [[1.0, 2.0]] * rows, "fp32_contents")]
    received = client.call("ModelInfer", model_name=NAME, inputs=many, parameters=padding)
    assert outputs(received)["default"][2] == [3.0] * rows
