"""Both servers give the same answers, bit for bit, and the same errors."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import np_to_triton_dtype

from examples.movielens.data import Dataset
from tests.support.conforming import COMMON, OTHERS, build, build_example
from tests.support.triton_client import WAYS, Answer, Arrays, TritonClient, numpys
from tests.support.triton_served import serving
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving import recorded
from torchrec_archiver.serving.recorded import Recorded
from torchrec_archiver.serving.repository import tensors
from torchrec_archiver.serving.running import Running
from torchrec_handler.archive.format import INDEX, Index
from torchrec_handler.client import PROTOBUF
from torchrec_handler.message.predictor_pb2 import PredictionRequest, PredictionResponse

SHARES = 3
SHARE = int(os.environ.get("CONFORMANCE_SHARE", "0"))
"""Of the less common kinds, which third is asked too, from 1 on; `make soak` asks all three, which
takes minutes and 10 GB of memory."""
EXAMPLES = ("two_tower", "sequence")
LESS_COMMON = list(OTHERS)[SHARE - 1 :: SHARES] if SHARE else []
KINDS: Mapping[str, Any] = {**COMMON, **{name: OTHERS[name] for name in LESS_COMMON}}
MODELS = ("movielens", *EXAMPLES, *KINDS)
JSON = "application/json"
QUALNAME = "X-TorchRec-Qualname"
pytestmark = [
    pytest.mark.timeout(900),
    # Of factories that script what they give.
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:.*TorchScript"),
]

STATUSES = {413: 400, 415: 400, 507: 500}
"""TorchServe's, for which Triton has no own."""
MOST_ROWS = 16
ALTERED_ROWS = 4

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
VECTOR = [0.5, -1, 2, 0.25]
RAW: Mapping[str, Any] = {
    "age": 0.5,
    "user": "u-81f3",
    "movie": [3, 70, 69],
    "topic": [["news", 0.5], ["sport", 2]],
    "text": VECTOR,
    "image": VECTOR,
}
BODIES: Mapping[str, tuple[str, Any, str]] = {
    "ids that are strings, and a missing number": ("raw_ids", {"instances": [RAW]}, "forward"),
    "a method that gives anything": ("several", {"times": 2}, "bias"),
    "its arguments": ("several", {"times": 2, "more": 3}, "bias"),
    "a list": ("typed", {"instances": [5, 6]}, "first"),
    "nothing": ("typed", {}, "forward"),
    "no object": ("typed", [1], "forward"),
    "a method that is not there": ("typed", {"float_features": [[1, 2]]}, "rank"),
}


@pytest.fixture(scope="module")
def archives(
    movielens_archive: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    store = tmp_path_factory.mktemp("store")
    examples = {name: build_example(name, dataset, store) for name in EXAMPLES}
    kinds = {name: build(kind, store, name) for name, kind in KINDS.items()}
    return {"movielens": movielens_archive, **examples, **kinds}


@pytest.fixture(scope="module")
def first(movielens: TorchServe, archives: Mapping[str, Path]) -> Iterator[TorchServe]:
    others = [path for name, path in archives.items() if name != "movielens"]
    with ThreadPoolExecutor(2) as pool:
        for answer in pool.map(movielens.register, others):
            assert answer.is_success, answer.text
    yield movielens
    for path in others:
        movielens.unregister(path.name)


@pytest.fixture(scope="module")
def other(archives: Mapping[str, Path]) -> Iterator[Running]:
    """Triton with the archives that the other server has."""
    with serving(list(archives.values())) as running:
        yield running


@pytest.fixture(scope="module")
def client(other: Running) -> Iterator[TritonClient]:
    with TritonClient(other.url, other.ports["gRPC"]) as made:
        yield made


def samples(archive: Path, folder: Path) -> list[Recorded]:
    """Recorded calls of all methods, of the types that the signature has."""
    if archive.is_file():
        zipfile.ZipFile(archive).extractall(folder)
        archive = folder
    signature = Index.loads((archive / INDEX).read_text(encoding="utf-8")).signature
    types = {name: numpys(kind.removeprefix("TYPE_")) for name, kind, _ in tensors(signature)}
    return [
        Recorded(
            qualname=one.qualname,
            rows=one.rows,
            inputs={name: array.astype(types[name]) for name, array in one.inputs.items()},
            outputs={},
        )
        for one in recorded.read(archive)
    ]


def ask(server: TorchServe, model: str, arrays: Arrays, qualname: str) -> httpx.Response:
    """Ask TorchServe in Triton's protocol, so that answers have names and types alike."""
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": np_to_triton_dtype(array.dtype),
            "data": array.reshape(-1).tolist(),
        }
        for name, array in arrays.items()
    ]
    return server.predict(model, {"inputs": inputs}, headers={QUALNAME: qualname})


def same(answer: Answer, expected: httpx.Response) -> None:
    assert answer.error == ""
    outputs = expected.json()["outputs"]
    assert {name: np_to_triton_dtype(array.dtype) for name, array in answer.outputs.items()} == {
        output["name"]: output["datatype"] for output in outputs
    }
    for output in outputs:
        found = answer.outputs[output["name"]]
        # The protocol's JSON has null for what is no number.
        wanted = np.array(output["data"], found.dtype).reshape(output["shape"])
        if found.dtype.kind == "f":
            found = np.where(np.isfinite(found), found, found.dtype.type(np.nan))
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes(), output["name"]


def altered(arrays: Arrays) -> Iterator[tuple[str, Arrays]]:
    """The arrays with one thing wrong, or nearly so."""
    for name, array in arrays.items():
        others = {other: each for other, each in arrays.items() if other != name}
        changed: dict[str, Any] = {
            "left out": None,
            "too short": array[:-1],
            "too long": np.concatenate([array, array[-1:]]),
        }
        if array.ndim == 1:  # of others JSON tells no shape
            changed["empty"] = array[:0]
        if array.dtype.kind == "i" and array.size:
            for value in (-1, np.iinfo(np.int32).max):
                changed[f"ending with {value}"] = np.append(array[:-1], array.dtype.type(value))
        for what, own in changed.items():
            yield f"{name} {what}", others if own is None else {**others, name: own}


@pytest.mark.parametrize("model", MODELS)
def test_every_method_answers(
    model: str,
    archives: Mapping[str, Path],
    first: TorchServe,
    client: TritonClient,
    tmp_path: Path,
) -> None:
    asked = 0
    for sample in samples(archives[model], tmp_path):
        if sample.rows > MOST_ROWS:
            continue
        expected = ask(first, model, sample.inputs, sample.qualname)
        assert expected.is_success, expected.text
        parameters = {} if sample.qualname == "forward" else {"qualname": sample.qualname}
        for way in WAYS:
            same(getattr(client, way)(model, sample.inputs, **parameters), expected)
        columns = recorded.columns(sample.inputs)
        answer = first.predict(
            model, columns, headers={QUALNAME: sample.qualname, "Content-Type": JSON}
        )
        told = client.body(model, columns, content_type=JSON, **parameters)
        assert told.outputs["body"].tolist() == [answer.content]
        assert told.outputs["content_type"].tolist() == [JSON.encode()]
        asked += 1
    assert asked


@pytest.mark.parametrize("model", MODELS)
def test_every_method_refuses(
    model: str,
    archives: Mapping[str, Path],
    first: TorchServe,
    client: TritonClient,
    tmp_path: Path,
) -> None:
    """What is wrong with a request, in the same words; Triton's own come first where it looks."""
    for sample in samples(archives[model], tmp_path):
        if sample.rows != ALTERED_ROWS:
            continue
        parameters = {} if sample.qualname == "forward" else {"qualname": sample.qualname}
        for what, arrays in altered(sample.inputs):
            expected = ask(first, model, arrays, sample.qualname)
            answer = client.binary(model, arrays, **parameters)
            if answer.error.startswith("[request id: "):
                assert expected.status_code == 400, what
            elif expected.is_success:
                same(answer, expected)
            else:
                assert (answer.error, what) == (expected.json()["message"], what)
                status = expected.status_code
                assert answer.status == STATUSES.get(status, status)


@pytest.mark.parametrize("case", BODIES)
def test_bodies(case: str, first: TorchServe, client: TritonClient) -> None:
    model, document, qualname = BODIES[case]
    body = json.dumps(document).encode()
    headers = {QUALNAME: qualname, "Content-Type": JSON}
    expected = first.predict(model, body, headers=headers)
    answer = client.body(model, body, content_type=JSON, qualname=qualname)
    if expected.is_success:
        assert answer.outputs["body"].tolist() == [expected.content]
    else:
        assert answer.error == expected.json()["message"]


def arrays(document: Mapping[str, Any]) -> Arrays:
    integers = ("lengths", "values")
    return {
        name: np.array(value, np.int32 if name.endswith(integers) else np.float32)
        for name, value in document.items()
    }


def test_a_block_of_a_row_is_of_all_rows(first: TorchServe, client: TritonClient) -> None:
    shared = arrays({**TWO_ROWS, "float_features": MOVIELENS["float_features"]})
    expected = ask(first, "movielens", shared, "forward")
    for way in WAYS:
        same(getattr(client, way)("movielens", shared), expected)


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


def test_too_many_rows(first: TorchServe, client: TritonClient) -> None:
    """In every way; their statuses are the server's own."""
    many = arrays({**MOVIELENS, "float_features": [[0.0] * 6] * 20_000})
    refused = first.predict("movielens", recorded.columns(many), headers={"Content-Type": JSON})
    message = refused.json()["message"]
    assert refused.status_code == 413
    for way in ("json", "binary"):
        answer = getattr(client, way)("movielens", many)
        assert (answer.status, answer.error) == (400, message)
    answer = client.grpc("movielens", many)
    assert (answer.status, answer.error) == ("StatusCode.INVALID_ARGUMENT", message)
    assert client.body("movielens", recorded.columns(many)).error == message
