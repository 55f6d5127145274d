"""Strings as ids and missing numbers, in every format that can say them."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.exact import DENSE, SPARSE, WEIGHTED
from tests.support.one_request import PROTOBUF, codecs, floats, ints, raw, signature
from torchrec_handler.archive.format import Hashed, InputSignature
from torchrec_handler.errors import RequestError
from torchrec_handler.hashing import to_ids
from torchrec_handler.message.predictor_pb2 import PredictionRequest
from torchrec_handler.serve.codecs.json_raw import BLOCK_IDS
from torchrec_handler.serve.request import Columns

HASH = Hashed(function="xxh64", rows=10, seed=0)
IDS = replace(SPARSE, hashed=(HASH, None, HASH))
"""Users and genres are hashed, movies are not."""
PAIRS = replace(WEIGHTED, hashed=(HASH, None))
NUMBERS = replace(DENSE, defaults=(None, 9.5, 23.0))

LENGTHS = [1, 1, 2, 0, 1, 3]
VALUES = ["u-81f3", -1, 3, 4, "Action", "[Drama", 2**64 - 1, "7,8"]
IDS_64 = to_ids(VALUES).tolist()  # type: ignore[arg-type]
COLUMNS = {"id_list_features.lengths": LENGTHS, "id_list_features.values": VALUES}
ROWS = [
    {"user": "u-81f3", "movie": [3, 4], "genres": "Action"},
    {"user": [-1], "genres": ["[Drama", 2**64 - 1, "7,8"]},
]


def decode(document: Any, *inputs: InputSignature, **limits: int) -> Columns:
    columns, _ = codecs(signature(*inputs), **limits).decode(raw(json.dumps(document).encode()))
    return columns


def ids(document: Any, entry: InputSignature = IDS) -> list[Any]:
    array = decode(document, entry).arrays[f"{entry.name}.values"]
    assert array.dtype == np.int64
    found: list[Any] = array.tolist()
    return found


def refusal(document: Any, *inputs: InputSignature, **limits: int) -> str:
    with pytest.raises(RequestError) as caught:
        decode(document, *inputs, **limits)
    return str(caught.value)


def tensors(values: list[Any], datatype: str, lengths: Any = LENGTHS) -> dict[str, Any]:
    name = IDS.name
    return {
        "inputs": [
            {
                "name": f"{name}.values",
                "shape": [len(values)],
                "datatype": datatype,
                "data": values,
            },
            {"name": f"{name}.lengths", "shape": [6], "datatype": "INT32", "data": lengths},
        ]
    }


class TestStrings:
    def test_are_ids_in_columns(self) -> None:
        assert ids(COLUMNS) == IDS_64
        assert ids(dict(reversed(COLUMNS.items()))) == IDS_64

    def test_are_ids_in_rows(self) -> None:
        assert ids({"instances": ROWS}) == IDS_64
        shared = {"instances": [{}, {}], "shared": {"user": "u-81f3", "genres": ["a", "b"]}}
        assert ids(shared) == to_ids(["u-81f3", "a", "b"]).tolist()

    def test_are_bytes_in_open_inference(self) -> None:
        assert ids(tensors(VALUES, "BYTES")) == IDS_64

    @pytest.mark.parametrize("datatype", ["INT64", "UINT64", "BYTES"])
    def test_integers_alone_may_be_any_of_64_bits(self, datatype: str) -> None:
        values = [2**64 - 1, 5, 3, 4, 1, 2**63, 7, 8]
        if datatype == "INT64":
            values = [-(2**63), 5, 3, 4, 1, 2**63 - 1, 7, 8]
        assert ids(tensors(values, datatype)) == to_ids(values).tolist()

    def test_are_paired_with_weights(self) -> None:
        document = {"instances": [{"tags": [["rock", 0.5], [3, 1]], "clicks": [[7, 2]]}]}
        arrays = decode(document, PAIRS).arrays
        assert arrays[f"{PAIRS.name}.values"].tolist() == to_ids(["rock", 3, 7]).tolist()
        assert arrays[f"{PAIRS.name}.weights"].tolist() == [0.5, 1, 2]

    def test_are_read_block_by_block(self) -> None:
        values = [f"user-{number}" for number in range(BLOCK_IDS + 3)]
        entry = replace(IDS, num_features=1, features=("user",), ids_below=(50,), hashed=(HASH,))
        document = {"id_list_features.lengths": [len(values)], "id_list_features.values": values}
        assert ids(document, entry) == to_ids(values).tolist()

    def test_may_hold_what_json_is_written_with(self) -> None:
        values = ['["', "{}", ",", "null", "\\u00e9", "é\n", ""]
        document = {"instances": [{"user": value} for value in values]}
        assert ids(document) == to_ids(values).tolist()
        columns = {
            "id_list_features.lengths": [[1] * 7, [0] * 7, [0] * 7],
            "id_list_features.values": values,
        }
        assert ids(columns) == to_ids(values).tolist()

    def test_of_a_feature_that_is_not_hashed_are_refused_by_its_name(self) -> None:
        values = ["u-1", -1, 3, "tt0468569", 1, 2, 3, 4]
        message = (
            "received \"tt0468569\" of feature 'movie', expected a signed 64-bit integer; "
            "hashed are user, genres"
        )
        columns = {**COLUMNS, "id_list_features.values": values}
        assert refusal(columns, IDS) == f"id_list_features.values[3]: {message}"
        assert refusal(tensors(values, "BYTES"), IDS) == (
            f"inputs[0] (id_list_features.values).data[3]: {message}"
        )
        assert refusal({"instances": [{"user": "u-1", "movie": ["tt0468569"]}]}, IDS) == (
            'instances[0].movie[0]: received "tt0468569", expected a signed 64-bit integer'
        )
        assert refusal({"instances": [{"user": "u-1", "movie": "tt0468569"}]}, IDS) == (
            'instances[0].movie: received "tt0468569", '
            "expected a list of ids (signed 64-bit integers), or one"
        )
        assert refusal({"instances": [{"tags": [["a", 1]], "clicks": [["b", 1]]}]}, PAIRS) == (
            'instances[0].clicks[0][0]: received "b", expected a signed 64-bit integer'
        )
        assert refusal({"instances": [{"clicks": [[1, 2], [1, "2"]]}]}, PAIRS) == (
            'instances[0].clicks[1][1]: received "2", expected a number'
        )
        assert refusal({"instances": [{"clicks": [[1, 2, 3]]}]}, PAIRS) == (
            "instances[0].clicks[0]: received an array, expected a pair [id, weight]"
        )

    def test_beyond_int64_only_hashed_features_have_ids(self) -> None:
        values = [1, 2, 2**63, 3, 4, 5, 6, 7]
        assert refusal({**COLUMNS, "id_list_features.values": values}, IDS) == (
            "id_list_features.values[2]: received 9223372036854775808 of feature 'movie', "
            "expected a signed 64-bit integer; hashed are user, genres"
        )
        assert refusal({"instances": [{"movie": [2**63]}]}, IDS) == (
            "instances[0].movie[0]: received 9223372036854775808, expected a signed 64-bit integer"
        )

    def test_where_no_feature_is_hashed_are_no_numbers(self) -> None:
        assert refusal({**COLUMNS}, SPARSE) == (
            'id_list_features.values[0]: received "u-81f3", expected signed 64-bit integers'
        )
        assert refusal(tensors(["a"], "BYTES"), SPARSE) == (
            'inputs[0] (id_list_features.values).datatype: received "BYTES", '
            "expected INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64"
        )

    def test_are_called_bytes(self) -> None:
        assert refusal(tensors([1, "a"], "INT64"), IDS) == (
            'inputs[0] (id_list_features.values).data[1]: received "a", '
            "expected INT64 (strings are BYTES)"
        )
        assert refusal(tensors([1], "FP32"), IDS) == (
            'inputs[0] (id_list_features.values).datatype: received "FP32", '
            "expected INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BYTES"
        )

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (["a", 1.5], "[1]: received 1.5, expected strings or 64-bit integers"),
            (["a", None], "[1]: received null, expected strings or 64-bit integers"),
            (["a", True], "[1]: received true, expected strings or 64-bit integers"),
            (["a", ["b"]], ": its lists have different lengths, expected rows of one length"),
            ([1, [2]], ": its lists have different lengths, expected rows of one length"),
            ([["a", "b"]], ": received shape 1 x 2, expected a flat list"),
        ],
    )
    def test_beside_anything_else_are_refused(self, values: list[Any], message: str) -> None:
        document = {**COLUMNS, "id_list_features.values": values}
        assert refusal(document, IDS) == f"id_list_features.values{message}"

    @pytest.mark.parametrize(
        ("value", "where", "expected"),
        [
            ([1.5], "[0]", "a string or a 64-bit integer"),
            (["a", None], "[1]", "a string or a 64-bit integer"),
            (None, "", "a list of ids (strings or 64-bit integers), or one"),
            (True, "", "a list of ids (strings or 64-bit integers), or one"),
        ],
    )
    def test_rows_hold_nothing_else(self, value: Any, where: str, expected: str) -> None:
        shown = json.dumps(value[-1] if where else value)
        assert refusal({"instances": [{"user": value}]}, IDS) == (
            f"instances[0].user{where}: received {shown}, expected {expected}"
        )

    def test_lengths_are_told_of_as_ever(self) -> None:
        """Also where they do not tell whose the strings are."""
        assert refusal({**COLUMNS, "id_list_features.lengths": "a"}, IDS) == (
            'id_list_features.lengths: received "a", expected an array'
        )
        for lengths in ([1, 1], [9] * 6, [-9] * 6, [], [2**63 - 1] * 6):
            document = {**COLUMNS, "id_list_features.lengths": lengths}
            assert ids(document) == IDS_64
        assert ids({"id_list_features.values": VALUES}) == IDS_64

    def test_count_against_the_limits(self) -> None:
        assert refusal(COLUMNS, IDS, ids_per_request=7) == (
            "id_list_features.values: received 8 elements, "
            "expected at most 7 (limits.ids_per_request)"
        )


class TestMissing:
    def test_numbers_are_null_in_columns(self) -> None:
        document = {NUMBERS.name: [[1, None, 2.5], [3, 4, None]]}
        found = decode(document, NUMBERS).arrays[NUMBERS.name]
        np.testing.assert_array_equal(found, [[1, np.nan, 2.5], [3, 4, np.nan]])
        flat = decode({NUMBERS.name: [1, None, None]}, NUMBERS).arrays[NUMBERS.name]
        np.testing.assert_array_equal(flat, [1, np.nan, np.nan])

    @pytest.mark.parametrize("data", [[1, None, 2, 3, 4, None], [[1, None, 2], [3, 4, None]]])
    @pytest.mark.parametrize("datatype", ["FP32", "INT8"])
    def test_numbers_are_null_in_open_inference(self, data: list[Any], datatype: str) -> None:
        tensor = {"name": NUMBERS.name, "shape": [2, 3], "datatype": datatype, "data": data}
        found = decode({"inputs": [tensor]}, NUMBERS).arrays[NUMBERS.name]
        np.testing.assert_array_equal(found, [[1, np.nan, 2], [3, 4, np.nan]])

    def test_numbers_are_null_or_absent_in_rows(self) -> None:
        document = {"instances": [{"age": 1, "hour": 2}, {"age": 3, "price": None}]}
        found = decode(document, NUMBERS).arrays[NUMBERS.name]
        np.testing.assert_array_equal(found, [[1, np.nan, 2], [3, np.nan, np.nan]])

    def test_a_row_s_own_null_goes_before_what_is_shared(self) -> None:
        document = {"instances": [{"hour": None}, {}], "shared": {"age": 1, "price": 5, "hour": 7}}
        found = decode(document, NUMBERS).arrays[NUMBERS.name]
        np.testing.assert_array_equal(found, [[1, 5, np.nan], [1, 5, 7]])

    def test_numbers_are_nan_in_protobuf(self) -> None:
        message = PredictionRequest(batch_size=1)
        message.float_features.num_features = 3
        message.float_features.values = floats([1, np.nan, 2])
        request = raw(message.SerializeToString(), PROTOBUF)
        found = codecs(signature(NUMBERS)).decode(request)[0].arrays[NUMBERS.name]
        np.testing.assert_array_equal(found, [[1, np.nan, 2]])

    def test_numbers_without_a_default_are_refused_by_name(self) -> None:
        message = "received null, expected a number: feature 'age' has no default"
        assert refusal({NUMBERS.name: [[1, None, 2], [None, 3, 4]]}, NUMBERS) == (
            f"float_features[1][0]: {message}"
        )
        assert refusal({NUMBERS.name: [None, 3, 4]}, NUMBERS) == f"float_features[0]: {message}"
        assert refusal({"instances": [{"price": 1}]}, NUMBERS) == (
            "instances[0].age: missing, expected in every row"
        )
        assert refusal({"instances": [{"age": None}]}, NUMBERS) == (
            "instances[0].age: received null, expected a number"
        )

    def test_where_there_is_no_default_null_is_no_number(self) -> None:
        assert refusal({DENSE.name: [1, None, 2]}, DENSE) == (
            "float_features[1]: received null, expected numbers"
        )

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1, None, "null"], '[2]: received "null", expected numbers'),
            ([1, "null", "x"], '[1]: received "null", expected numbers'),
            ([1, None, True], "[2]: received true, expected numbers"),
            (
                [[1, None, 2], [3]],
                ": its lists have different lengths, expected rows of one length",
            ),
            ([1, None, [None]], ": its lists have different lengths, expected rows of one length"),
            ([1e99, None, 1], ": received 1e+99, expected finite float32s"),
        ],
    )
    def test_numbers_beside_anything_else_are_refused(self, value: Any, message: str) -> None:
        assert refusal({NUMBERS.name: value}, NUMBERS) == f"float_features{message}"

    def test_the_number_that_stands_for_null_meanwhile_is_a_number(self) -> None:
        found = decode({NUMBERS.name: [1, 1e99, 2]}, NUMBERS).arrays[NUMBERS.name]
        assert found.tolist() == [1, 1e99, 2]


def test_protobuf_holds_ids_of_64_bits_and_those_of_strings() -> None:
    message = PredictionRequest(batch_size=2)
    field = message.id_list_features
    field.num_features, field.lengths = 3, ints(LENGTHS)
    field.values = to_ids(VALUES).astype("<i8").tobytes()  # type: ignore[arg-type]
    request = raw(message.SerializeToString(), PROTOBUF)
    read, _ = codecs(signature(IDS)).decode(request)
    assert read.arrays[f"{IDS.name}.values"].tolist() == IDS_64


@pytest.mark.parametrize(
    ("entry", "document"),
    [
        (IDS, lambda number: {"instances": [{"user": f"u[{number}]", "genres": ["}", number]}]}),
        (NUMBERS, lambda number: {"instances": [{"age": number, "hour": None}]}),
        (NUMBERS, lambda number: {NUMBERS.name: [[number, None, 2], [3, 4, None]]}),
    ],
)
def test_small_requests_are_read_together_as_alone(
    entry: InputSignature, document: Callable[[int], Any]
) -> None:
    known = codecs(signature(entry))
    requests = [raw(json.dumps(document(number)).encode()) for number in range(5)]
    assert known.group(requests) == [[0, 1, 2, 3, 4]]
    together = known.decode_together(requests)
    for request, columns in zip(requests, together.each(), strict=True):
        alone, _ = known.decode(request)
        assert columns.arrays.keys() == alone.arrays.keys()
        for name, array in columns.arrays.items():
            np.testing.assert_array_equal(array, alone.arrays[name])
