"""Raw inputs, from training to an answer: the served rows are those that were trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.answered import ask as answered
from tests.support.factories import simple
from torchrec_archiver import build_archive
from torchrec_archiver.report.sections import sections
from torchrec_handler import client
from torchrec_handler.archive.format import INDEX
from torchrec_handler.archive.read import read_description
from torchrec_handler.errors import ArchiveError
from torchrec_handler.hashing import hash_strings
from torchrec_handler.load.loader import load
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest

CPU = torch.device("cpu")
VECTORS = torch.arange(16.0).reshape(2, 2, 4)
INSTANCES: list[dict[str, Any]] = [
    {
        "age": 0.5,
        "user": "u-81f3",
        "movie": [3, 70, 69],
        "topic": [["news", 0.5], ["sport", 2]],
        "text": VECTORS[0, 0].tolist(),
        "image": VECTORS[1, 0].tolist(),
    },
    {
        "age": 2,
        "hour": -1,
        "user": ["u-1", -(2**63)],
        "movie": 8,
        "topic": [[17, -1]],
        "text": VECTORS[0, 1].tolist(),
        "image": VECTORS[1, 1].tolist(),
    },
]
USERS: list[str | bytes | int] = ["u-81f3", "u-1", -(2**63)]
TOPICS: list[str | bytes | int] = ["news", "sport", 17]
COLUMNS: dict[str, Any] = {
    "float_features": [[0.5, None], [2, -1]],
    "id_list_features.lengths": [1, 2, 3, 1],
    "id_list_features.values": [*USERS, 3, 70, 69, 8],
    "id_score_list_features.lengths": [2, 1],
    "id_score_list_features.values": TOPICS,
    "id_score_list_features.weights": [0.5, 2, -1],
    "embedding_features": VECTORS.tolist(),
}


def trained() -> torch.Tensor:
    """What the model gives for ids that were hashed as training data is."""
    users = torch.from_numpy(hash_strings(USERS, simple.ROWS["user"], seed=7))
    topics = torch.from_numpy(hash_strings(TOPICS, 5))
    bags = KeyedJaggedTensor(
        keys=["user", "movie"],
        values=torch.cat([users, torch.tensor([3, 69, 8])]),
        lengths=torch.tensor([1, 2, 2, 1]),
    )
    weighted = KeyedJaggedTensor(
        keys=["topic"],
        values=topics,
        weights=torch.tensor([0.5, 2, -1]),
        lengths=torch.tensor([2, 1]),
    )
    numbers = torch.tensor([[0.5, 12.0], [2.0, -1.0]])
    with torch.no_grad():
        found: torch.Tensor = simple.seeded()(numbers, bags, weighted, list(VECTORS))
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    config = folder / "config.yaml"
    config.write_text("torchrec: {tables: {dtype: float32}}\n")
    return build_archive(
        model_name="raw",
        version="1.0",
        factory=simple.RawIds,
        weights=simple.seeded().state_dict(),
        config_file=config,
        export_path=folder,
        archive_format="no-archive",
    )


@pytest.fixture(scope="module")
def engine(archive: Path) -> Engine:
    options = Options.model_validate({"tables": {"dtype": "float32"}})
    return Engine("raw", load(archive, options, CPU), options)


def ask(engine: Engine, *bodies: bytes, content_type: str = "application/json") -> list[Any]:
    requests = [
        RawRequest(body=body, content_type=content_type, accept="application/json")
        for body in bodies
    ]
    return [json.loads(response.body) for response in answered(engine, requests)]


def expect_trained(answer: Any) -> None:
    assert answer["ids"] == [3, 69, 8]
    torch.testing.assert_close(torch.tensor(answer["default"]), trained())


def test_rows_of_strings_are_answered_as_trained(engine: Engine) -> None:
    (answer,) = ask(engine, json.dumps({"instances": INSTANCES}).encode())
    expect_trained(answer)


def test_columns_of_strings_are_answered_as_trained(engine: Engine) -> None:
    (answer,) = ask(engine, json.dumps(COLUMNS).encode())
    expect_trained(answer)


def test_open_inference_s_strings_are_answered_as_trained(engine: Engine) -> None:
    tensors = []
    for name, value in COLUMNS.items():
        flat = np.ravel(np.array(value, object)).tolist()
        shape = [len(flat)] if "." in name else list(np.shape(value))
        kind = {"lengths": "INT32", "values": "BYTES"}.get(name.rpartition(".")[2], "FP32")
        tensors.append({"name": name, "shape": shape, "datatype": kind, "data": flat})
    (answer,) = ask(engine, json.dumps({"inputs": tensors}).encode())
    answer = {output["name"]: output["data"] for output in answer["outputs"]}
    expect_trained(answer)


class Jagged:
    """Ids that no tensor holds."""

    def __init__(self, lengths: list[int], values: list[Any], weights: Any = None) -> None:
        self.keys = lambda: ["topic"] if weights else ["user", "movie"]
        self.lengths, self.values = lambda: lengths, lambda: values
        self.weights_or_none = lambda: weights


def test_the_client_s_strings_are_answered_as_trained(engine: Engine) -> None:
    body = client.encode(
        np.array([[0.5, np.nan], [2, -1]]),
        Jagged([1, 2, 3, 1], [*USERS, 3, 70, 69, 8]),
        Jagged([2, 1], TOPICS, [0.5, 2, -1]),
        embeddings=VECTORS.transpose(0, 1),
    )
    (answer,) = ask(engine, body, content_type=client.PROTOBUF)
    expect_trained(answer)


def test_requests_beside_each_other_get_their_own_rows(engine: Engine) -> None:
    """Read and checked together where they are alike, with a bad one between them."""
    bodies = [json.dumps({"instances": [row]}).encode() for row in INSTANCES]
    bad = json.dumps({"instances": [{**INSTANCES[1], "movie": "tt0468569"}]}).encode()
    first, refused, second = ask(engine, bodies[0], bad, bodies[1])
    joined = {name: first[name] + second[name] for name in ("default", "ids")}
    expect_trained(joined)
    assert refused == {
        "code": 400,
        "type": "InvalidRequest",
        "message": (
            'instances[0].movie: received "tt0468569", '
            "expected a list of ids (signed 64-bit integers), or one"
        ),
    }


def test_what_is_missing_without_a_default_is_named(engine: Engine) -> None:
    columns = {**COLUMNS, "float_features": [[0.5, None], [None, -1]]}
    missing = {name: value for name, value in INSTANCES[1].items() if name != "age"}
    answers = ask(
        engine, json.dumps(columns).encode(), json.dumps({"instances": [missing]}).encode()
    )
    assert [answer["message"] for answer in answers] == [
        "float_features[1][0]: received null, expected a number: feature 'age' has no default",
        "instances[0].age: missing, expected in every row",
    ]


# The archive.


def test_the_archive_says_what_is_done(archive: Path) -> None:
    numbers, ids, topics, _ = json.loads((archive / INDEX).read_text())["signature"]["inputs"]
    assert numbers["defaults"] == [None, 12.0]
    assert ids["hashed"] == [{"function": "xxh64", "rows": 50, "seed": 7}, None]
    assert ids["out_of_range"] == [None, "drop"]
    assert topics["hashed"] == [{"function": "xxh64", "rows": 5, "seed": 0}]


def test_inspect_shows_it(archive: Path) -> None:
    inputs = next(each for each in sections(read_description(archive), 100))
    assert [column.name for column in inputs.columns][3:] == ["feature", "ids below", "raw values"]
    assert [row[3:] for row in inputs.rows] == [
        ("age", "", ""),
        ("hour", "", "12 if missing"),
        ("user", "50", "hashed into 50, seed 7"),
        ("movie", "70", "out of range: drop"),
        ("topic", "9", "hashed into 5, seed 0"),
        ("text", "", ""),
        ("image", "", ""),
    ]


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"defaults": []}),
        (1, {"hashed": [{"function": "xxh64", "rows": 50, "seed": 8}, None]}),
        (1, {"out_of_range": []}),
    ],
)
def test_an_archive_that_says_another_thing_than_its_factory_is_refused(
    number: int, change: dict[str, Any], archive: Path
) -> None:
    text = (archive / INDEX).read_text()
    index = json.loads(text)
    entry = index["signature"]["inputs"][number]
    entry.update(change)
    try:
        (archive / INDEX).write_text(json.dumps(index))
        with pytest.raises(ArchiveError) as caught:
            load(archive, Options(), CPU)
    finally:
        (archive / INDEX).write_text(text)
    assert str(caught.value) == (
        f"archive.json: signature: {entry['name']}: hashed, out_of_range or defaults are not what "
        "the factory's model_inputs_data says; the archive was altered or damaged, build or copy "
        "it again"
    )
