"""Requests out of samples: the same rows, in every format, as often as wanted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import one_request
from tests.support.exact import DENSE
from torchrec_archiver.serving import recorded
from torchrec_archiver.serving.recorded import Array, Recorded
from torchrec_handler.archive.format import SAMPLES, InputSignature, Signature
from torchrec_handler.errors import ArchiveError, ServeError


def arrays() -> dict[str, Array]:
    """One request's, as a sample holds them."""
    return {
        name: np.array(value, np.int32 if name.endswith(("lengths", "values")) else np.float32)
        for name, value in one_request.COLUMNS.items()
    }


def sample(inputs: dict[str, Array], rows: int = one_request.ROWS) -> Recorded:
    return Recorded(qualname="forward", rows=rows, inputs=inputs, outputs={})


def row(inputs: dict[str, Array], rows: int, at: int) -> list[Any]:
    """What one row holds, feature by feature."""
    found = [inputs["float_features"][at].tolist(), inputs["embedding_features"][:, at].tolist()]
    for name in ("id_list_features", "id_score_list_features"):
        lengths = inputs[f"{name}.lengths"].ravel()
        ends = np.cumsum(lengths)
        for ids in (f"{name}.values", f"{name}.weights"):
            if ids in inputs:
                lists = np.split(inputs[ids], ends[:-1])
                found.append([lists[number].tolist() for number in range(at, len(lists), rows)])
    return found


def read(body: bytes, content_type: str) -> dict[str, Array]:
    """What a server reads."""
    columns, _ = one_request.codecs().decode(one_request.raw(body, content_type))
    return dict(columns.arrays)


@pytest.mark.parametrize("at", [[0], [1], [1, 0, 1], [0, 0, 0, 0, 1]])
def test_rows_are_taken_as_often_as_wanted(at: list[int]) -> None:
    inputs = arrays()
    taken = recorded.take(inputs, one_request.ROWS, np.array(at))
    assert [row(taken, len(at), number) for number in range(len(at))] == [
        row(inputs, one_request.ROWS, number) for number in at
    ]


def test_the_pool_has_the_rows_of_all_samples_of_the_first_method() -> None:
    inputs = arrays()
    one = recorded.take(inputs, one_request.ROWS, np.array([1]))
    other = Recorded(qualname="embed", rows=1, inputs=one, outputs={})
    pool = recorded.pool([sample(one, 1), sample(inputs), other])
    assert (pool.qualname, pool.rows) == ("forward", 3)
    assert [row(dict(pool.inputs), 3, number) for number in range(3)] == [
        row(inputs, one_request.ROWS, number) for number in (1, 0, 1)
    ]


def test_columns_and_the_message_are_what_a_server_reads() -> None:
    inputs = arrays()
    assert json.loads(recorded.columns(inputs)) == one_request.COLUMNS
    body = recorded.protobuf(inputs, one_request.ROWS, one_request.SIGNATURE)
    assert body == one_request.BODIES["protobuf"]


def test_ids_of_64_bits_stay_whole_in_the_message() -> None:
    entry = InputSignature(name="clicks", type="sparse", num_features=1, is_wide=True)
    inputs = {"clicks.lengths": np.array([1]), "clicks.values": np.array([2**62])}
    body = recorded.protobuf(inputs, 1, one_request.signature(entry))
    columns, _ = one_request.codecs(one_request.signature(entry)).decode(
        one_request.raw(body, one_request.PROTOBUF)
    )
    assert columns.arrays["clicks.values"].tolist() == [2**62]


def test_the_message_has_one_field_for_inputs_of_a_type() -> None:
    entries = [InputSignature(name=name, type="dense", num_features=1) for name in ("a", "b")]
    with pytest.raises(ServeError) as caught:
        recorded.protobuf(
            {"a": np.ones((1, 1)), "b": np.ones((1, 1))}, 1, one_request.signature(*entries)
        )
    assert str(caught.value) == (
        "b: application/x-protobuf has no field for it beside float_features; use application/json"
    )


def test_people_read_one_row_by_its_features_names() -> None:
    body = recorded.readable(sample(arrays()), one_request.SIGNATURE)
    assert json.loads(body) == {
        "instances": [
            {
                "age": 31,
                "price": 9.5,
                "hour": 23,
                "user": 7,
                "movie": [3, 4],
                "genres": [],
                "tags": [[5, 0.5]],
                "clicks": [[6, 1], [7, 2]],
                "image": [1, 2, 3, 4],
                "title": [0.5, 0, 0, 0],
            }
        ]
    }
    one = recorded.take(arrays(), one_request.ROWS, np.array([0]))
    assert row(read(body, one_request.JSON), 1, 0) == row(one, 1, 0)


@pytest.mark.parametrize(
    "signature",
    [
        one_request.signature(
            DENSE, InputSignature(name="id_list_features", type="sparse", num_features=3)
        ),
        one_request.signature(
            DENSE,
            InputSignature(
                name="id_list_features",
                type="sparse",
                num_features=3,
                features=("age", "movie", "genres"),
            ),
        ),
    ],
    ids=["no names", "a name twice"],
)
def test_features_without_names_of_their_own_are_columns(signature: Signature) -> None:
    names = ("float_features", "id_list_features.lengths", "id_list_features.values")
    inputs = {name: arrays()[name] for name in names}
    body = json.loads(recorded.readable(sample(inputs), signature))
    assert body == {
        "float_features": [[31, 9.5, 23]],
        "id_list_features.lengths": [1, 2, 0],
        "id_list_features.values": [7, 3, 4],
    }


def test_a_dense_input_without_names_is_given_whole() -> None:
    dense = InputSignature(name="float_features", type="dense", num_features=3)
    inputs = {"float_features": arrays()["float_features"]}
    body = json.loads(recorded.readable(sample(inputs), one_request.signature(dense)))
    assert body == {"instances": [{"float_features": [31, 9.5, 23]}]}


def test_what_holds_no_samples_gives_none_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    assert recorded.read(tmp_path) == []
    (tmp_path / SAMPLES).write_bytes(b"\x00" * 20)
    with pytest.raises(ArchiveError) as caught:
        recorded.read(tmp_path)
    assert str(caught.value).startswith("samples.safetensors: cannot be read (")
    assert str(caught.value).endswith("); the archive was altered or damaged")
