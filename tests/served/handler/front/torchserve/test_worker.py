"""The handler in a real TorchServe, asked over HTTP and gRPC."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torchrec.inference.modules import quantize_inference_model

from examples.movielens.data import DENSE_FEATURES, SPARSE_FEATURES, load
from examples.movielens.model import build_model
from examples.movielens.rows import Rows
from examples.movielens.train import logits, model_config
from tests.support.factories.ranking import RankingPredictFactory
from tests.support.grpc_client import GrpcClient
from tests.support.paths import ROOT
from torchrec_archiver import DefaultPackager
from torchrec_archiver.server import TorchServe
from torchrec_handler.message.predictor_pb2 import (
    FloatFeatures,
    PredictionRequest,
    PredictionResponse,
    SparseFeatures,
)

NAME = "movielens"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def test_rows() -> Rows:
    """The rows of the test split."""
    return load().test()


@pytest.fixture(scope="module")
def reference(trained: Path, test_rows: Rows) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores of the test rows by TorchRec's own quantized module, called in process."""
    config = model_config(load())
    model = build_model(config, torch.device("cpu"))
    model.load_state_dict(torch.load(trained / "weights.pt", weights_only=True))
    quantize_inference_model(model.eval())
    with torch.inference_mode():
        scores: np.ndarray[Any, np.dtype[np.float32]] = torch.sigmoid(
            logits(model, config, test_rows)
        ).numpy()
    return scores


@pytest.fixture(scope="module")
def batching(server: TorchServe, movielens_archive: Path) -> Iterator[TorchServe]:
    """The same model with a delay so long that requests sent at once share one forward call."""
    answer = server.register(
        movielens_archive, model_name="batching", batch_size=64, max_batch_delay=500
    )
    assert answer.is_success, answer.text
    yield server
    server.unregister("batching")


@pytest.fixture
def channel(server: TorchServe, tmp_path: Path) -> Iterator[GrpcClient]:
    client = GrpcClient(server.grpc_address, tmp_path)
    yield client
    client.close()


def some(rows: Rows, start: int, count: int) -> dict[str, Any]:
    return dict(rows.take(slice(start, start + count)).request())


def error(answer: httpx.Response) -> tuple[int, str]:
    """Status and message of an error, whose body has TorchServe's own shape."""
    body = answer.json()
    assert set(body) == {"code", "type", "message"}
    assert body["code"] == answer.status_code
    return answer.status_code, body["message"]


def test_scores_equal_those_of_torchrecs_quantized_module(
    movielens: TorchServe, test_rows: Rows, reference: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    for start, count in ((0, 1), (1, 1), (7, 3), (100, 1000)):
        answer = movielens.predict(NAME, some(test_rows, start, count))
        assert answer.headers["content-type"] == "application/json"
        np.testing.assert_allclose(
            answer.json()["default"], reference[start : start + count], atol=1e-6, rtol=0
        )


BAD: list[tuple[dict[str, Any] | bytes, dict[str, str], int, str]] = [
    (b"{", JSON, 400, "body: not valid JSON"),
    (b"\xff\xfe", JSON, 400, "body: not valid"),
    (b"[1, 2]", JSON, 400, "body: received an array, expected a JSON object"),
    (b"", JSON, 400, "body: "),
    (b"\x08\x01\x12", {"Content-Type": "application/x-protobuf"}, 400, "not a PredictionRequest"),
    (b"hello", {"Content-Type": "text/plain"}, 415, "received content type 'text/plain'"),
    ({"float_features": [[0, 0, 0, 0, 0]]}, {}, 400, "float_features: received shape 1 x 5"),
    ({"float_features": [[0] * 6]}, {}, 400, "id_list_features.lengths: missing"),
    ({"colour": [1]}, {}, 400, "colour: unknown input"),
    ({"float_features": [["a"] * 6]}, {}, 400, 'float_features[0][0]: received "a"'),
    ({"instances": [{"age": 3}]}, {}, 400, "instances[0].user_mean: missing"),
    ({"instances": []}, {}, 400, "instances: received an empty array"),
]
"""Bodies that are wrong in themselves: body, headers, status, part of the message."""


def broken(rows: Rows, **changes: Any) -> dict[str, Any]:
    return {**some(rows, 0, 1), **changes}


def test_of_64_requests_at_once_16_bad_ones_fail_alone(
    batching: TorchServe, test_rows: Rows, reference: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    """A bad request gets its own error, the others of its batch their right answers."""
    ids = some(test_rows, 0, 1)["id_list_features.values"]
    lengths = some(test_rows, 0, 1)["id_list_features.lengths"]
    bad = [
        *BAD,
        (
            broken(test_rows, **{"id_list_features.values": [99999, *ids[1:]]}),
            {},
            400,
            "id_list_features.values[0]: received id 99999 of feature 'user_id', expected 0 to 943",
        ),
        (
            broken(test_rows, **{"id_list_features.lengths": [-1, *lengths[1:]]}),
            {},
            400,
            "id_list_features.lengths[0]: received -1, expected 0 or more",
        ),
        (
            broken(test_rows, **{"id_list_features.lengths": lengths[:-1]}),
            {},
            400,
            "id_list_features.lengths: received 6 lengths, expected 7 features x 1 rows = 7",
        ),
        (some(test_rows, 0, 1), {"X-TorchRec-Qualname": "rank"}, 404, "expected one of forward"),
    ]
    assert len(bad) == 16
    before = [worker["pid"] for worker in batching.workers("batching")]
    requests: list[tuple[dict[str, Any] | bytes, dict[str, str]]] = []
    for position in range(48):
        if position % 3 == 0:
            requests.append(bad[position // 3][:2])
        requests.append((some(test_rows, position * 10, position % 5 + 1), {}))
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(
            pool.map(lambda one: batching.predict("batching", one[0], headers=one[1]), requests)
        )
    rejected = iter(answers[position * 4] for position in range(16))
    for _, _, status, part in bad:
        got, message = error(next(rejected))
        assert got == status
        assert part in message
    answered = [answer for at, answer in enumerate(answers) if at % 4]
    assert len(answered) == 48
    for position, answer in enumerate(answered):
        start = position * 10
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(
            answer.json()["default"],
            reference[start : start + position % 5 + 1],
            atol=1e-6,
            rtol=0,
        )
    assert [worker["pid"] for worker in batching.workers("batching")] == before


def test_formats_agree_over_http_and_grpc(
    movielens: TorchServe, channel: GrpcClient, test_rows: Rows
) -> None:
    """Columns, rows, protobuf and Open Inference give the same numbers, over both protocols."""
    rows = test_rows.take(slice(50, 57))
    columns = rows.request()
    bodies = {
        "columns": json.dumps(columns).encode(),
        "rows": json.dumps(as_instances(rows)).encode(),
        "open_inference": json.dumps(as_open_inference(columns)).encode(),
        "protobuf": as_protobuf(rows),
    }
    expected = np.array(movielens.predict(NAME, columns).json()["default"])
    for name, body in bodies.items():
        content_type = "application/x-protobuf" if name == "protobuf" else "application/json"
        answer = movielens.predict(NAME, body, headers={"Content-Type": content_type})
        assert answer.status_code == 200, answer.text
        for got in (answer.content, channel.predict(NAME, data=body)):
            np.testing.assert_allclose(scores(got), expected, atol=1e-6, rtol=0)


def test_a_grpc_stream_gets_its_one_answer(
    movielens: TorchServe, channel: GrpcClient, test_rows: Rows
) -> None:
    """TorchServe's frontend let the worker die on an answer without headers."""
    before = movielens.workers(NAME)
    columns = test_rows.take(slice(50, 52)).request()
    expected = movielens.predict(NAME, columns).json()
    for _ in range(2):
        (answer,) = channel.stream(NAME, data=json.dumps(columns).encode())
        assert json.loads(answer) == expected
        (answer,) = channel.stream(NAME, data=b"{")
        assert json.loads(answer)["code"] == 400
    assert [one["pid"] for one in movielens.workers(NAME)] == [one["pid"] for one in before]


def as_instances(rows: Rows) -> dict[str, Any]:
    instances = []
    for at in range(len(rows)):
        row = rows.take(slice(at, at + 1))
        ends = np.cumsum(row.lengths.ravel())
        ids = np.split(row.values, ends[:-1])
        sparse = {name: ids[i].tolist() for i, name in enumerate(SPARSE_FEATURES)}
        dense = dict(zip(DENSE_FEATURES, row.dense[0].tolist(), strict=True))
        instances.append({**sparse, **dense})
    return {"instances": instances}


def as_open_inference(columns: Any) -> dict[str, Any]:
    dense = columns["float_features"]
    inputs = [
        {
            "name": "float_features",
            "shape": [len(dense), len(dense[0])],
            "datatype": "FP32",
            "data": dense,
        }
    ]
    for part in ("lengths", "values"):
        data = columns[f"id_list_features.{part}"]
        inputs.append(
            {
                "name": f"id_list_features.{part}",
                "shape": [len(data)],
                "datatype": "INT32",
                "data": data,
            }
        )
    return {"id": "7", "inputs": inputs}


def as_protobuf(rows: Rows) -> bytes:
    request = PredictionRequest(
        batch_size=len(rows),
        float_features=FloatFeatures(num_features=rows.dense.shape[1], values=rows.dense.tobytes()),
        id_list_features=SparseFeatures(
            num_features=rows.lengths.shape[0],
            lengths=rows.lengths.tobytes(),
            values=rows.values.tobytes(),
        ),
    )
    return request.SerializeToString()


def scores(body: bytes) -> list[float]:
    """The scores in an answer of any format."""
    if not body.startswith(b"{"):
        return list(PredictionResponse.FromString(body).predictions["default"].data)
    document = json.loads(body)
    if "outputs" in document:
        assert (document["model_name"], document["id"]) == (NAME, "7")
        return list(document["outputs"][0]["data"])
    return list(document["default"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/movielens/predict?qualname=forward", 200),
        ("/movielens/predict?qualname=rank", 404),
        ("/predictions/movielens/1.0/forward", 200),
        ("/predictions/movielens/1.0/rank", 404),
        ("/explanations/movielens", 404),
    ],
)
def test_a_method_is_named_by_parameter_or_path(
    movielens: TorchServe, test_rows: Rows, path: str, status: int
) -> None:
    """TorchServe hands on no query of /predictions/NAME, but that of /NAME/predict."""
    answer = movielens.inference.post(path, json=some(test_rows, 0, 1))
    assert answer.status_code == status
    if status == 404:
        name = "explain" if "explanations" in path else "rank"
        assert answer.json() == {
            "code": 404,
            "type": "UnknownQualname",
            "message": f"qualname: received '{name}', expected one of forward",
        }


def test_grpc_names_the_method_and_gets_errors_as_bodies(
    movielens: TorchServe, channel: GrpcClient, test_rows: Rows
) -> None:
    body = json.dumps(some(test_rows, 0, 1)).encode()
    assert movielens.predict(NAME, body, headers=JSON).json() == json.loads(
        channel.predict(NAME, data=body, qualname=b"forward")
    )
    assert json.loads(channel.predict(NAME, data=body, qualname=b"rank"))["code"] == 404


def test_accept_names_the_format_of_the_answer(movielens: TorchServe, test_rows: Rows) -> None:
    answer = movielens.predict(
        NAME, some(test_rows, 0, 3), headers={"Accept": "application/x-protobuf"}
    )
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert len(scores(answer.content)) == 3


def test_a_form_is_told_what_to_send(movielens: TorchServe, test_rows: Rows) -> None:
    """What curl sends with --data and no content type."""
    body = json.dumps(some(test_rows, 0, 1)).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, message = error(movielens.predict(NAME, body, headers=form))
    assert status == 415
    assert message.endswith("with curl, add -H 'Content-Type: application/json'")


def test_headers_with_torchserves_own_names_harm_nobody(
    movielens: TorchServe, test_rows: Rows
) -> None:
    body = some(test_rows, 0, 1)
    for name in ("body", "data", "describe", "url_path", "explain"):
        answer = movielens.predict(NAME, body, headers={name: "1"})
        assert answer.status_code in {200, 404}, (name, answer.text)


def test_parameters_with_headers_names_harm_nobody(
    movielens: TorchServe, channel: GrpcClient, test_rows: Rows
) -> None:
    """TorchServe puts a parameter's content type among the headers, under the parameter's name."""
    body = some(test_rows, 0, 1)
    expected = movielens.predict(NAME, body).json()
    given = dict.fromkeys(("accept", "x-torchrec-qualname", "url_path", "content-type"), b"1")
    assert movielens.inference.post(f"/{NAME}/predict", params=given, json=body).json() == expected
    assert json.loads(channel.predict(NAME, data=json.dumps(body).encode(), **given)) == expected


FORMS = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/movielens",
        "/explanations/movielens",
        "/movielens/predict",
        "/movielens/1.0/predict",
        "/invocations?model_name=movielens",
        "/models/movielens/invoke",
        "/v1/models/movielens:predict",
        "/v2/models/movielens/infer",
    ],
)
def test_describe_is_no_clients_to_ask(movielens: TorchServe, test_rows: Rows, path: str) -> None:
    """A header is all that TorchServe's own job has; on the inference port it means nothing."""
    ask = movielens.inference.post
    described = {"describe": "True"}
    status = 404 if "explanations" in path else 200
    answer = ask(path, json=some(test_rows, 0, 1), headers=described)
    assert answer.status_code == status, answer.text
    assert "default" in answer.json() or status == 404
    for form in FORMS:
        # Without a body these have no parameter, as TorchServe's own job.
        for headers in (
            [("describe", "True"), ("Content-Type", form)],
            [("describe", "True"), ("Content-Type", form), ("Content-Type", "text/plain")],
            [("describe", "True"), ("Content-Type", form), ("content-type", "")],
        ):
            assert set(ask(path, headers=headers).json()) == {"code", "type", "message"}
    assert set(ask(path, headers=described).json()) == {"code", "type", "message"}


def test_describe_tells_what_is_served(movielens: TorchServe, movielens_archive: Path) -> None:
    answer = movielens.management.get("/models/movielens", params={"customized": "true"})
    described = answer.json()[0]["customizedMetadata"]
    assert [entry["name"] for entry in described["signature"]["inputs"]] == [
        "float_features",
        "id_list_features",
    ]
    assert described["signature"]["methods"] == {"forward": True}
    assert {entry["dtype"] for entry in described["tables"]} == {"int8"}
    assert len(described["tables"]) == 7
    assert described["versions"]["torchrec"] == importlib.metadata.version("torchrec")
    assert set(described["sha256"]) >= {"predict_factory.pt", "dense.safetensors", "tables.bin"}
    assert movielens_archive.suffix == ".mar"


def test_describe_tells_what_a_worker_has_served(movielens: TorchServe, test_rows: Rows) -> None:
    def served() -> dict[str, Any]:
        answer = movielens.management.get(f"/models/{NAME}", params={"customized": "true"})
        found: dict[str, Any] = answer.json()[0]["customizedMetadata"]["served"]
        return found

    before = served()
    movielens.predict(NAME, some(test_rows, 0, 3))
    movielens.predict(NAME, {"float_features": [["a"] * 6]})
    after = served()
    assert after["requests"] == before["requests"] + 2
    assert after["rows"] == before["rows"] + 3
    assert after["errors"]["InvalidRequest"] == before["errors"].get("InvalidRequest", 0) + 1
    assert set(after["seconds"]) == {"read", "check", "batch", "predict", "split", "write"}


def test_an_archive_of_plain_torch_model_archiver_is_served(
    server: TorchServe, tmp_path: Path
) -> None:
    package = tmp_path / "predict_factory.pt"
    DefaultPackager.save_predict_factory(RankingPredictFactory, {}, package, {})
    (tmp_path / "model-config.yaml").write_text("minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\n")
    subprocess.run(
        [
            str(Path(sys.executable).with_name("torch-model-archiver")),
            *("--model-name", "plain", "--version", "1.0"),
            *("--serialized-file", str(package)),
            *("--handler", str(ROOT / "handler" / "predict_factory_handler.py")),
            *("--config-file", str(tmp_path / "model-config.yaml")),
            *("--export-path", str(tmp_path)),
        ],
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    answer = server.register(tmp_path / "plain.mar")
    assert answer.is_success, answer.text
    row = {"user": 3, "movie": [1, 2], "genres": [], "tags": [[4, 0.5]], "clicks": []}
    body = {"instances": [{**row, "float_features": [0.1, 0.2, 0.3]}] * 2}
    answer = server.predict("plain", body)
    server.unregister("plain")
    first, second = answer.json()["default"]
    assert math.isclose(first, second, rel_tol=1e-4)
    logit = answer.json()["logit"][0]
    assert math.isclose(first, 1 / (1 + math.exp(-logit)), rel_tol=1e-5)


def test_a_broken_archive_says_why_in_the_log(
    server: TorchServe, movielens_archive: Path, tmp_path: Path
) -> None:
    broken_archive = tmp_path / "broken.mar"
    with zipfile.ZipFile(movielens_archive) as good, zipfile.ZipFile(broken_archive, "w") as bad:
        for name in good.namelist():
            content = bytearray(good.read(name))
            if name == "predict_factory.pt":
                content[len(content) // 2] ^= 1
            bad.writestr(name, content)
    answer = server.register(broken_archive, model_name="broken")
    is_said = server.logs_soon("ArchiveError: predict_factory.pt: its sha256 is")
    server.unregister("broken")
    assert answer.status_code == 500, answer.text
    assert is_said, server.log()[-3000:]
