"""JSON bytes to a document, and what of it stands in messages."""

from typing import Any

import pytest

from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.serve.codecs.json_document import (
    KEPT_PARSER_BYTES,
    JsonParser,
    shown,
)


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
