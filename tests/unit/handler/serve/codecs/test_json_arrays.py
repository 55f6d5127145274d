"""Lists of a JSON document to arrays, without a Python object a number."""

import json
from typing import Any

import numpy as np
import pytest
import simdjson

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_arrays import read_array

INTEGERS = Column(is_integer=True, most=12, limit="limits.ids_per_request")
FLOATS = Column(is_integer=False, most=12, limit="limits.rows_per_request x 3 features")


def array(value: Any, column: Column) -> np.ndarray[Any, Any]:
    parsed = simdjson.Parser().parse(json.dumps(value).encode())
    return read_array("x", parsed, column, [])


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
            read_array("x", simdjson.Parser().parse(deep(depth)), FLOATS, [])
        assert str(caught.value) == "x: its lists are nested deeper than 3 levels"

    def test_refuses_deep_lists_behind_flat_ones(self) -> None:
        body = b"[[1, 2], [%s, 3, 4]]" % deep(900)
        with pytest.raises(InvalidRequest) as caught:
            read_array("x", simdjson.Parser().parse(body), FLOATS, [])
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
        found = read_array("x", parser.parse(b"[1, 2, 3]"), INTEGERS, [])
        parser.parse(b"[4, 5, 6]")
        assert found.tolist() == [1, 2, 3]
