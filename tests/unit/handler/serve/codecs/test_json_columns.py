"""JSON columns: TorchRec's input tensors by name."""

import json
from typing import Any

import pytest

from tests.support.one_request import COLUMNS, codecs, raw
from torchrec_handler.errors import InvalidRequest, RequestError, RequestTooLarge


def refusal(kind: type[RequestError], body: Any, **limits: int) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(kind) as caught:
        codecs(**limits).decode(raw(content))
    return str(caught.value)


class TestDecode:
    def test_takes_batch_size(self) -> None:
        columns, _ = codecs().decode(raw(b'{"batch_size": 3, "float_features": [1, 2, 3]}'))
        assert columns.batch_size == 3
        assert columns.arrays["float_features"].tolist() == [1, 2, 3]

    def test_without_batch_size_leaves_it_to_the_arrays(self) -> None:
        columns, _ = codecs().decode(raw(json.dumps(COLUMNS).encode()))
        assert columns.batch_size is None
        assert list(columns.arrays) == list(COLUMNS)

    @pytest.mark.parametrize(
        ("value", "received"),
        [
            ("0", "0"),
            ("-1", "-1"),
            ("1.0", "1.0"),
            ("true", "true"),
            ('"2"', '"2"'),
            ("[2]", "an array"),
            ("null", "null"),
        ],
    )
    def test_refuses_a_batch_size_that_counts_nothing(self, value: str, received: str) -> None:
        assert refusal(InvalidRequest, b'{"batch_size": %s}' % value.encode()) == (
            f"batch_size: received {received}, expected a positive integer"
        )

    def test_refuses_an_unknown_name(self) -> None:
        assert refusal(InvalidRequest, {**COLUMNS, "float_feature": []}) == (
            "float_feature: unknown input, expected float_features, id_list_features.lengths, "
            "id_list_features.values, id_score_list_features.lengths, "
            "id_score_list_features.values, id_score_list_features.weights, embedding_features "
            "or batch_size (or instances, or inputs)"
        )

    def test_shows_an_unknown_name_that_is_empty(self) -> None:
        assert refusal(InvalidRequest, {"": []}).startswith('"": unknown input, ')

    def test_shortens_an_unknown_name(self) -> None:
        assert refusal(InvalidRequest, {"x" * 1_000: []}).startswith(
            f"{'x' * 80}…: unknown input, "
        )

    def test_refuses_a_name_given_twice(self) -> None:
        """Parsers differ in which of them they take."""
        assert (
            refusal(InvalidRequest, b'{"float_features": [1, 2, 3], "float_features": [4, 5, 6]}')
            == "body: float_features is given twice"
        )

    def test_names_the_element_at_fault(self) -> None:
        assert refusal(InvalidRequest, {"float_features": [[1, 2, 3], [1, None, 3]]}) == (
            "float_features[1][1]: received null, expected numbers"
        )

    def test_refuses_ids_that_are_no_integers(self) -> None:
        assert refusal(InvalidRequest, {"id_list_features.values": [1, 2.5]}) == (
            "id_list_features.values[1]: received 2.5, expected signed 64-bit integers"
        )

    def test_refuses_more_rows_than_the_limits(self) -> None:
        body = {"float_features": [[0, 0, 0]] * 5}
        assert refusal(RequestTooLarge, body, rows_per_request=4) == (
            "float_features: received 15 elements, expected at most 12 "
            "(limits.rows_per_request x 3 features)"
        )

    def test_refuses_more_ids_than_the_limits(self) -> None:
        body = {"id_list_features.values": [0] * 5}
        assert refusal(RequestTooLarge, body, ids_per_request=4) == (
            "id_list_features.values: received 5 elements, expected at most 4 "
            "(limits.ids_per_request)"
        )
