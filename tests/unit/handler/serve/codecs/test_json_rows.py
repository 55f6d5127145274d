"""JSON rows: one object a row, and what all rows share."""

import json
from typing import Any

import numpy as np
import pytest

from tests.support.exact import DENSE, EMBEDDING, SPARSE, WEIGHTED
from tests.support.one_request import codecs, raw, signature
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest, RequestError, RequestTooLarge
from torchrec_handler.serve.request import Columns

HOUR = InputSignature(name="float_features", type="dense", num_features=2)


def decode(document: Any, *inputs: InputSignature, **limits: int) -> Columns:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    columns, _ = codecs(signature(*inputs), **limits).decode(raw(content))
    return columns


def arrays(document: Any, *inputs: InputSignature) -> dict[str, Any]:
    return {name: value.tolist() for name, value in decode(document, *inputs).arrays.items()}


def refusal(
    document: Any, *inputs: InputSignature, kind: type[RequestError] = InvalidRequest, **limits: int
) -> str:
    with pytest.raises(kind) as caught:
        decode(document, *inputs, **limits)
    return str(caught.value)


def rows(*instances: Any, **shared: Any) -> dict[str, Any]:
    return {"instances": instances, "shared": shared} if shared else {"instances": instances}


class TestDocument:
    def test_tells_the_number_of_rows(self) -> None:
        assert decode(rows({}, {}, {}), SPARSE).batch_size == 3

    def test_an_empty_shared_object_is_as_none(self) -> None:
        assert decode({"shared": {}, "instances": [{}]}, SPARSE).batch_size == 1

    @pytest.mark.parametrize(
        ("instances", "received"),
        [([], "an empty array"), ({}, "an object"), (None, "null"), (3, "3")],
    )
    def test_refuses_what_holds_no_rows(self, instances: Any, received: str) -> None:
        assert refusal({"instances": instances}, SPARSE) == (
            f"instances: received {received}, expected an array of objects, one a row"
        )

    def test_refuses_a_row_that_is_no_object(self) -> None:
        assert refusal(rows({}, [1]), SPARSE) == (
            "instances[1]: received an array, expected an object"
        )

    def test_refuses_shared_that_is_no_object(self) -> None:
        assert refusal({"instances": [{}], "shared": [1]}, SPARSE) == (
            "shared: received an array, expected an object"
        )

    def test_refuses_an_unknown_key(self) -> None:
        assert refusal({"instances": [{}], "share": {}}, SPARSE) == (
            "share: unknown key, expected instances or shared"
        )

    def test_reads_past_what_other_servers_know(self) -> None:
        """KServe and Vertex AI send parameters, TensorFlow Serving's clients signature_name."""
        document = {**rows({}, {}), "parameters": {"top_k": 5}, "signature_name": "serving_default"}
        assert decode(document, SPARSE).batch_size == 2

    def test_refuses_a_key_given_twice(self) -> None:
        assert refusal(b'{"instances": [{}], "instances": [{}, {}]}', SPARSE) == (
            "body: instances is given twice"
        )

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (
                b'{"instances": [{}, {"movie": 1, "user": 2, "movie": 3}]}',
                "instances[1]: movie is given twice",
            ),
            (
                b'{"instances": [{}], "shared": {"user": 1, "us\\u0065r": 2}}',
                "shared: user is given twice",
            ),
        ],
    )
    def test_refuses_a_feature_given_twice(self, body: bytes, message: str) -> None:
        assert refusal(body, SPARSE) == message

    def test_shortens_an_unknown_name(self) -> None:
        assert refusal(rows({"x" * 1_000: 1}), SPARSE) == (
            f"{'x' * 80}…: unknown feature, expected genres, movie, user"
        )
        assert refusal({"instances": [{}], "x" * 1_000: 1}, SPARSE) == (
            f"{'x' * 80}…: unknown key, expected instances or shared"
        )

    @pytest.mark.parametrize("where", ["instances", "shared"])
    def test_refuses_an_unknown_feature(self, where: str) -> None:
        document = rows({}, {"film": 1}) if where == "instances" else rows({}, film=1)
        assert refusal(document, SPARSE) == ("film: unknown feature, expected genres, movie, user")

    def test_refuses_more_rows_than_the_limits(self) -> None:
        document = rows({}, {}, {})
        assert refusal(document, SPARSE, kind=RequestTooLarge, rows_per_request=2) == (
            "instances: received 3 rows, expected at most 2 (limits.rows_per_request)"
        )


class TestDense:
    def test_features_by_name(self) -> None:
        document = rows({"hour": 1, "age": 2, "price": 2.5}, {"age": 3, "price": 4, "hour": 5})
        assert arrays(document, DENSE) == {"float_features": [[2, 2.5, 1], [3, 4, 5]]}

    def test_a_shared_feature(self) -> None:
        """An instance's own value goes before it."""
        document = rows({"price": 1}, {"price": 2, "hour": 9}, age=30, hour=8)
        assert arrays(document, DENSE) == {"float_features": [[30, 1, 8], [30, 2, 9]]}

    def test_without_names_the_input_is_given_whole(self) -> None:
        document = rows({"float_features": [1, 2]}, {"float_features": [3, 4]})
        assert arrays(document, HOUR) == {"float_features": [[1, 2], [3, 4]]}

    def test_with_names_the_input_may_be_given_whole_too(self) -> None:
        document = rows({"float_features": [1, 2, 3]})
        assert arrays(document, DENSE) == {"float_features": [[1, 2, 3]]}

    def test_given_whole_and_shared_it_is_one_row(self) -> None:
        document = rows({}, {}, float_features=[1, 2])
        assert arrays(document, HOUR) == {"float_features": [[1, 2]]}

    def test_an_input_may_be_called_as_its_feature(self) -> None:
        age = InputSignature(name="age", type="dense", num_features=1, features=("age",))
        assert arrays(rows({"age": 3}), age) == {"age": [[3]]}

    def test_refuses_a_missing_feature(self) -> None:
        document = rows({"age": 1, "price": 2, "hour": 3}, {"age": 1, "hour": 3})
        assert refusal(document, DENSE) == "instances[1].price: missing, expected in every row"

    @pytest.mark.parametrize(
        ("value", "received"),
        [(None, "null"), ("3", '"3"'), (True, "true"), ([3], "an array"), ({}, "an object")],
    )
    def test_refuses_what_is_no_number(self, value: Any, received: str) -> None:
        good = {"age": 1, "price": 2, "hour": 3}
        assert refusal(rows(good, {**good, "price": value}), DENSE) == (
            f"instances[1].price: received {received}, expected a number"
        )

    def test_says_that_a_fault_is_in_what_is_shared(self) -> None:
        assert refusal(rows({"age": 1, "hour": 3}, price="2"), DENSE) == (
            'shared.price: received "2", expected a number'
        )

    @pytest.mark.parametrize(
        ("second", "received"), [([3], "an array"), (3, "3"), ("ab", '"ab"'), ({}, "an object")]
    )
    def test_refuses_whole_inputs_of_different_lengths(self, second: Any, received: str) -> None:
        document = rows({"float_features": [1, 2]}, {"float_features": second})
        assert refusal(document, HOUR) == (
            f"instances[1].float_features: received {received}, "
            "expected a list of numbers, as many as in every row"
        )

    def test_names_the_number_at_fault_in_a_whole_input(self) -> None:
        document = rows({"float_features": [1, 2]}, {"float_features": [3, None]})
        assert refusal(document, HOUR) == (
            "instances[1].float_features[1]: received null, expected a number"
        )


class TestSparse:
    def test_lists_of_ids_feature_by_feature(self) -> None:
        document = rows(
            {"user": [7], "movie": [3, 4], "genres": []}, {"user": [8], "genres": [1, 2]}
        )
        assert arrays(document, SPARSE) == {
            "id_list_features.lengths": [1, 1, 2, 0, 0, 2],
            "id_list_features.values": [7, 8, 3, 4, 1, 2],
        }

    def test_one_id_is_a_list_of_one(self) -> None:
        document = rows({"user": 7, "movie": [3]}, {"user": 8, "movie": 4})
        assert arrays(document, SPARSE) == {
            "id_list_features.lengths": [1, 1, 1, 1, 0, 0],
            "id_list_features.values": [7, 8, 3, 4],
        }

    def test_a_missing_feature_is_an_empty_list(self) -> None:
        assert arrays(rows({}, {}), SPARSE) == {
            "id_list_features.lengths": [0] * 6,
            "id_list_features.values": [],
        }

    def test_a_shared_feature(self) -> None:
        """It is read once; an instance's own value goes before it, an empty list too."""
        document = rows({"movie": 1}, {"movie": 2, "genres": []}, user=7, genres=[3, 4])
        assert arrays(document, SPARSE) == {
            "id_list_features.lengths": [1, 0, 1, 1, 2, 0],
            "id_list_features.values": [7, 1, 2, 3, 4],
        }
        shared = decode(document, SPARSE).shared
        assert {name: mask.tolist() for name, mask in shared.items()} == {
            "id_list_features": [True, False, False]
        }

    @pytest.mark.parametrize(
        ("value", "where", "received", "expected"),
        [
            ("3", "", '"3"', "a list of ids (signed 64-bit integers), or one"),
            (2.5, "", "2.5", "a list of ids (signed 64-bit integers), or one"),
            (None, "", "null", "a list of ids (signed 64-bit integers), or one"),
            (True, "", "true", "a list of ids (signed 64-bit integers), or one"),
            ({}, "", "an object", "a list of ids (signed 64-bit integers), or one"),
            (2**63, "", "9223372036854775808", "a list of ids (signed 64-bit integers), or one"),
            ([1, "3"], "[1]", '"3"', "a signed 64-bit integer"),
            ([1, 2.0], "[1]", "2.0", "a signed 64-bit integer"),
            ([[1]], "[0]", "an array", "a signed 64-bit integer"),
            ([True], "[0]", "true", "a signed 64-bit integer"),
            ([1, 2**64 - 1], "[1]", "18446744073709551615", "a signed 64-bit integer"),
        ],
    )
    def test_refuses_what_is_no_id(
        self, value: Any, where: str, received: str, expected: str
    ) -> None:
        document = rows({"user": 7, "movie": 1}, {"user": 7, "movie": value})
        message = f"instances[1].movie{where}: received {received}, expected {expected}"
        assert refusal(document, SPARSE) == message

    def test_says_that_a_fault_is_in_what_is_shared(self) -> None:
        assert refusal(rows({}, {}, movie=[1, "2"]), SPARSE) == (
            'shared.movie[1]: received "2", expected a signed 64-bit integer'
        )

    def test_refuses_a_model_that_hides_its_features(self) -> None:
        hidden = InputSignature(name="id_list_features", type="sparse", num_features=3)
        assert refusal(rows({}), hidden) == (
            "id_list_features: this model hides its feature names, so instances cannot be read; "
            "send columns, or name them in PredictFactory.model_inputs_data"
        )

    def test_refuses_more_ids_than_the_limits(self) -> None:
        document = rows({"user": 1, "movie": [2, 3]}, {"user": 4, "movie": [5, 6]})
        assert decode(document, SPARSE, ids_per_request=6).batch_size == 2
        assert refusal(document, SPARSE, kind=RequestTooLarge, ids_per_request=5) == (
            "id_list_features: received more than 5 ids (limits.ids_per_request)"
        )

    def test_counts_shared_ids_once_a_row(self) -> None:
        document = rows({}, {}, {}, movie=[1, 2])
        assert decode(document, SPARSE, ids_per_request=6).batch_size == 3
        assert refusal(document, SPARSE, kind=RequestTooLarge, ids_per_request=5) == (
            "id_list_features: received more than 5 ids (limits.ids_per_request)"
        )


class TestWeightedSparse:
    def test_lists_of_pairs(self) -> None:
        document = rows({"tags": [[5, 0.5]], "clicks": [[6, 1], [7, 2]]}, {"tags": [[8, 0.25]]})
        assert arrays(document, WEIGHTED) == {
            "id_score_list_features.lengths": [1, 1, 2, 0],
            "id_score_list_features.values": [5, 8, 6, 7],
            "id_score_list_features.weights": [0.5, 0.25, 1, 2],
        }

    def test_no_pairs_at_all(self) -> None:
        assert arrays(rows({}), WEIGHTED) == {
            "id_score_list_features.lengths": [0, 0],
            "id_score_list_features.values": [],
            "id_score_list_features.weights": [],
        }

    @pytest.mark.parametrize(
        ("value", "where", "received", "expected"),
        [
            (3, "", "3", "a list of [id, weight] pairs"),
            ("ab", "", '"ab"', "a list of [id, weight] pairs"),
            ([3], "[0]", "3", "a pair [id, weight]"),
            ([[3, 0.5], [3]], "[1]", "an array", "a pair [id, weight]"),
            ([[3, 0.5, 1]], "[0]", "an array", "a pair [id, weight]"),
            ([["3", 0.5]], "[0][0]", '"3"', "a signed 64-bit integer"),
            ([[3, None]], "[0][1]", "null", "a number"),
            ([[True, 1]], "[0][0]", "true", "a signed 64-bit integer"),
            ([[2**63, 1]], "[0][0]", str(2**63), "a signed 64-bit integer"),
        ],
    )
    def test_refuses_what_is_no_list_of_pairs(
        self, value: Any, where: str, received: str, expected: str
    ) -> None:
        document = rows({"tags": [[1, 1]]}, {"tags": value})
        message = f"instances[1].tags{where}: received {received}, expected {expected}"
        assert refusal(document, WEIGHTED) == message


class TestEmbedding:
    def test_vectors_feature_by_feature(self) -> None:
        document = rows({"image": [1, 2], "title": [3, 4]}, {"image": [5, 6], "title": [7, 8]})
        assert arrays(document, EMBEDDING) == {
            "embedding_features": [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
        }

    def test_a_shared_vector(self) -> None:
        document = rows({"image": [1, 2]}, {"image": [5, 6]}, title=[7, 8])
        assert arrays(document, EMBEDDING) == {
            "embedding_features": [[[1, 2], [5, 6]], [[7, 8], [7, 8]]]
        }

    def test_all_vectors_shared_are_one_row(self) -> None:
        document = rows({}, {}, image=[1, 2], title=[7, 8])
        assert arrays(document, EMBEDDING) == {"embedding_features": [[[1, 2]], [[7, 8]]]}

    def test_without_names_the_input_is_one_feature(self) -> None:
        hidden = InputSignature(name="embedding_features", type="embedding")
        document = rows({"embedding_features": [1, 2]}, {"embedding_features": [5, 6]})
        assert arrays(document, hidden) == {"embedding_features": [[[1, 2], [5, 6]]]}

    def test_refuses_features_of_different_widths(self) -> None:
        assert refusal(rows({"image": [1, 2], "title": [3]}), EMBEDDING) == (
            "title: received 1 numbers a row, expected 2, as many as image has"
        )

    def test_refuses_a_missing_vector(self) -> None:
        assert refusal(rows({"image": [1, 2]}), EMBEDDING) == (
            "instances[0].title: missing, expected in every row"
        )

    def test_says_that_a_fault_is_in_what_is_shared(self) -> None:
        assert refusal(rows({"title": [3, 4]}, image=[1, "2"]), EMBEDDING) == (
            'shared.image[1]: received "2", expected a number'
        )


def test_decodes_numbers_exactly() -> None:
    numbers = np.random.default_rng(7).random((50, 3))
    document = rows(*[{"age": a, "price": b, "hour": c} for a, b, c in numbers.tolist()])
    assert np.array_equal(decode(document, DENSE).arrays["float_features"], numbers)
