"""Answers and calls of the Open Inference Protocol, without a server."""

import json

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


def test_only_what_no_http_request_can_be_is_a_call() -> None:
    assert model_infer.is_call({"body": {"content-type": "application/json"}})
    for headers in (
        {},
        {"body": {"content-type": ""}},
        {"data": {"content-type": "application/json"}},
        {"body": {"content-type": "application/json"}, "host": "h"},
    ):
        assert not model_infer.is_call(headers)
