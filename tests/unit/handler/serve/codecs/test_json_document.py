"""JSON bytes to arrays, without a Python object a number."""

import json
from typing import Any

import numpy as np
import pytest
import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_document import (
    KEPT_PARSER_BYTES,
    JsonParser,
    read_array,
    shown,
)

INTEGERS = Column(is_integer=True, most=12, limit="limits.ids_per_request")
FLOATS = Column(is_integer=False, most=12, limit="limits.rows_per_request x 3 features")


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        JsonParser().parse(body)
    return str(caught.value)


class TestParse:
    @pytest.mark.parametrize("kind", [bytes, bytearray])
    def test_an_object(self, kind: Any) -> None:
        """TorchServe hands over bytearrays."""
        assert JsonParser().parse(kind(b' {"a": [1]} ')).as_dict() == {"a": [1]}

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"", "no JSON found"),
            (b"\x00", "The JSON document has an improper structure"),
            (b"{", "The JSON document has an improper structure"),
            (b'{"a": 1}}', "The JSON document has an improper structure"),
            (b"{'a': 1}", "The JSON document has an improper structure"),
            (b'{"a": NaN}', "The JSON document has an improper structure"),
            (b'{"a": Infinity}', "The JSON document has an improper structure"),
            (b'{"a": -Infinity}', "Problem while parsing a number"),
            (b'{"a": 1e400}', "Problem while parsing a number"),
            (b'{"a": 01}', "Problem while parsing a number"),
            (b'{"a": nul}', "Problem while parsing an atom starting with the letter 'n'"),
            (b'{"a', "A string is opened, but never closed"),
            (b'{"\\ud800": 1}', "Problem while parsing a string"),
            (
                b'{"a": 123456789012345678901234567890}',
                "Big integer value that cannot be represented using 64 bits",
            ),
            (
                b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
                "The JSON document was too deep",
            ),
        ],
    )
    def test_refuses_what_is_no_json(self, body: bytes, reason: str) -> None:
        assert refusal(body).startswith(f"body: not valid JSON ({reason}")

    def test_refuses_wrong_utf_8(self) -> None:
        assert refusal(b'{"a": "\xff"}') == "body: not valid UTF-8"

    @pytest.mark.parametrize(
        ("body", "received"),
        [(b"[1, 2]", "an array"), (b"17", "17"), (b'"text"', '"text"'), (b"null", "null")],
    )
    def test_refuses_what_is_no_object(self, body: bytes, received: str) -> None:
        assert refusal(body) == f"body: received {received}, expected a JSON object"

    def test_goes_on_while_an_earlier_document_is_alive(self) -> None:
        parser = JsonParser()
        kept = parser.parse(b'{"a": 1}')
        assert parser.parse(b'{"b": 2}').as_dict() == {"b": 2}
        assert kept.as_dict() == {"a": 1}

    def test_large_bodies_do_not_grow_the_parser_that_is_kept(self) -> None:
        """A parser keeps the memory of its largest body, so large ones get one of their own."""
        parser = JsonParser()
        kept = parser._parser
        document = parser.parse(b'{"a": "' + b"x" * KEPT_PARSER_BYTES + b'"}')
        assert parser.parse(b'{"b": 2}').as_dict() == {"b": 2}
        assert parser._parser is kept
        assert document["a"] == "x" * KEPT_PARSER_BYTES


def array(value: Any, column: Column) -> np.ndarray[Any, Any]:
    parsed = simdjson.Parser().parse(json.dumps(value).encode())
    return read_array("x", parsed, column)


def fault(kind: type[Exception], value: Any, column: Column) -> str:
    with pytest.raises(kind) as caught:
        array(value, column)
    return str(caught.value)


def deep(depth: int) -> bytes:
    return b"[" * depth + b"1" + b"]" * depth


class TestReadArray:
    @pytest.mark.parametrize(
        "value",
        [[], [1], [1, -2, 2**63 - 1], [[1, 2], [3, 4]], [[[1], [2]]], [[]], [[], []]],
    )
    def test_integers_of_the_shape_that_the_lists_have(self, value: Any) -> None:
        found = array(value, INTEGERS)
        assert found.dtype == np.int64
        assert found.shape == np.shape(value)
        assert found.tolist() == value

    @pytest.mark.parametrize("value", [[], [1, 2.5], [[1, 1e300], [-0.5, 2**63]]])
    def test_floats_of_the_shape_that_the_lists_have(self, value: Any) -> None:
        found = array(value, FLOATS)
        assert found.dtype == np.float64
        assert found.tolist() == value

    @pytest.mark.parametrize(
        ("value", "received"),
        [(1, "1"), ("text", '"text"'), (None, "null"), ({}, "an object"), (True, "true")],
    )
    def test_refuses_what_is_no_array(self, value: Any, received: str) -> None:
        message = f"x: received {received}, expected an array"
        assert fault(InvalidRequest, value, FLOATS) == message

    @pytest.mark.parametrize(
        ("value", "where", "received"),
        [
            ([1, 2.5], "[1]", "2.5"),
            ([1, 2.0], "[1]", "2.0"),
            ([1, 2**63], "[1]", "9223372036854775808"),
            ([[1, 2], [3, "4"]], "[1][1]", '"4"'),
            ([1, True], "[1]", "true"),
            ([1, None], "[1]", "null"),
            ([[1], {}], "[1]", "an object"),
            ([[1], None], "[1]", "null"),
            (["ab", "cd"], "[0]", '"ab"'),
            ([[1, 2], "ab"], "[1]", '"ab"'),
            ([-(2**63), 2.5], "[1]", "2.5"),
        ],
    )
    def test_names_the_first_element_that_is_no_integer(
        self, value: Any, where: str, received: str
    ) -> None:
        message = f"x{where}: received {received}, expected signed 64-bit integers"
        assert fault(InvalidRequest, value, INTEGERS) == message

    @pytest.mark.parametrize(
        ("value", "where", "received"),
        [([[1], ["a"]], "[1][0]", '"a"'), ([False], "[0]", "false"), ([{}], "[0]", "an object")],
    )
    def test_names_the_first_element_that_is_no_number(
        self, value: Any, where: str, received: str
    ) -> None:
        message = f"x{where}: received {received}, expected numbers"
        assert fault(InvalidRequest, value, FLOATS) == message

    @pytest.mark.parametrize(
        "value",
        [
            [[1, 2], [3]],
            [[], [1, 2]],
            [[1, 2], []],
            [[1], 2],
            [1, [2, 3]],
            [[[1], [2]], [[3, 4], [5, 6]]],
            [[1, [2, 3]], [4, 5]],
        ],
    )
    def test_refuses_lists_of_different_lengths(self, value: Any) -> None:
        message = "x: its lists have different lengths, expected rows of one length"
        assert fault(InvalidRequest, value, FLOATS) == message

    @pytest.mark.parametrize("depth", [4, 64, 65, 1000])
    def test_refuses_deep_lists(self, depth: int) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read_array("x", simdjson.Parser().parse(deep(depth)), FLOATS)
        assert str(caught.value) == "x: its lists are nested deeper than 3 levels"

    def test_refuses_deep_lists_behind_flat_ones(self) -> None:
        body = b"[[1, 2], [%s, 3, 4]]" % deep(900)
        with pytest.raises(InvalidRequest) as caught:
            read_array("x", simdjson.Parser().parse(body), FLOATS)
        message = "x: its lists have different lengths, expected rows of one length"
        assert str(caught.value) == message

    @pytest.mark.parametrize("value", [[0] * 13, [[0] * 13], [[[0]] * 13], [[0]] * 13])
    def test_refuses_more_elements_than_the_limits_however_nested(self, value: Any) -> None:
        assert fault(RequestTooLarge, value, FLOATS) == (
            "x: received 13 elements, expected at most 12 (limits.rows_per_request x 3 features)"
        )

    def test_where_there_is_no_limit_any_number_passes(self) -> None:
        column = Column(is_integer=False, most=None, limit="limits.rows_per_request")
        assert array([0] * 1000, column).shape == (1000,)

    def test_outlives_its_parser(self) -> None:
        parser = simdjson.Parser()
        found = read_array("x", parser.parse(b"[1, 2, 3]"), INTEGERS)
        parser.parse(b"[4, 5, 6]")
        assert found.tolist() == [1, 2, 3]


class TestShown:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "null"),
            (1.5, "1.5"),
            ("Amélie", '"Amélie"'),
            ([1], "an array"),
            ({}, "an object"),
            ("x" * 200, '"' + "x" * 79 + "…"),
        ],
    )
    def test_fits_into_a_message(self, value: Any, text: str) -> None:
        assert shown(value) == text


@pytest.mark.parametrize("elements", [2**24 - 1, 2**24 + 3])
def test_an_array_that_overflows_simdjsons_count_is_refused_unread(elements: int) -> None:
    """pysimdjson would write beyond the list that it makes of it."""
    body = b'{"instances": [' + b"1," * (elements - 1) + b"1]}"
    with pytest.raises(RequestTooLarge) as caught:
        JsonParser().parse(body)
    assert str(caught.value) == (
        "body: received more than 16777213 commas, expected fewer values in JSON; "
        "send fewer rows, or protobuf"
    )
