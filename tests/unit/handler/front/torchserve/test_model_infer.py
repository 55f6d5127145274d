"""Answers and calls of the Open Inference Protocol, without a server."""

import json

import pytest

from torchrec_handler.front.torchserve import model_infer
from torchrec_handler.serve.request import Response

NAME = "typed"


def test_what_the_protocol_has_no_form_for_is_bytes() -> None:
    """A method without need_preproc may answer anything."""
    response = Response(content_type="application/json", body=b"[1, 2]")
    assert json.loads(model_infer.answer(response, NAME, "1.0")) == {
        "id": "",
        "model_name": NAME,
        "model_version": "1.0",
        "outputs": [{"name": "default", "datatype": "BYTES", "shape": [1], "data": [[1, 2]]}],
    }


def test_strings_are_read_as_they_were_sent() -> None:
    """The frontend writes them in base64; what is no UTF-8 is no string."""
    numbers = {"name": "n", "datatype": "INT64", "shape": [1], "data": [7]}
    texts = {"name": "t", "datatype": "BYTES", "shape": [3], "data": ["dS0x", "w6k=", "/w=="]}
    body = model_infer.with_texts(json.dumps({"id": "1", "inputs": [numbers, texts]}).encode())
    assert json.loads(body) == {
        "id": "1",
        "inputs": [numbers, {**texts, "data": ["u-1", "é", None]}],
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": [{"datatype": "INT64", "data": [7]}]}',
        b'{"inputs": [{"datatype": "BYTES", "data": [7]}]}',
        b'{"inputs": [{"datatype": "BYTES", "data": ["dS0x*"]}]}',
        b'{"inputs": [{"datatype": "BYTES"}]}',
        b'{"inputs": {"datatype": "BYTES"}}',
        b'["BYTES"]',
        b'{"BYTES"',
    ],
)
def test_other_bodies_are_left_to_those_who_read_them(body: bytes) -> None:
    assert model_infer.with_texts(body) is body


def test_only_what_no_http_request_can_be_is_a_call() -> None:
    assert model_infer.is_call({"body": {"content-type": "application/json"}})
    for headers in (
        {},
        {"body": {"content-type": ""}},
        {"data": {"content-type": "application/json"}},
        {"body": {"content-type": "application/json"}, "host": "h"},
    ):
        assert not model_infer.is_call(headers)
