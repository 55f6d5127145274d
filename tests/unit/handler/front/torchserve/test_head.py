"""What the handler takes from headers."""

from typing import Any

import pytest

from torchrec_handler.front.torchserve.head import Head

BODY = {"content-type": "application/x-protobuf; x=1"}


@pytest.mark.parametrize(
    ("given", "content_types"),
    [
        ({}, ("", "")),
        ({"Content-Type": " Text/JSON ; a=b"}, ("text/json", "text/json")),
        ({"body": BODY, "Content-Type": "a/b"}, ("application/x-protobuf", "a/b")),
        ({"data": BODY, "body": "a header"}, ("", "application/x-protobuf")),
    ],
)
def test_content_types(given: dict[str, Any], content_types: tuple[str, str]) -> None:
    assert tuple(Head(given).content_types.values()) == content_types


@pytest.mark.parametrize(
    ("given", "qualname"),
    [
        ({}, "forward"),
        ({"X-TorchRec-Qualname": "", "url_path": "a"}, "a"),
        ({"X-TorchRec-Qualname": "b", "url_path": "a"}, "b"),
    ],
)
def test_the_method_of_a_header_or_a_path(given: dict[str, Any], qualname: str) -> None:
    assert Head(given).qualname == qualname


def test_what_torchserve_itself_read_is_read_alike() -> None:
    given = {"body": BODY, "Accept": "a/b", "content-encoding": "gzip", "explain": "True"}
    head = Head.of(given)
    assert head == given
    assert (head.accept, head.content_encoding) == ("a/b", "gzip")
    assert (head.is_explain, head.is_http, head.is_call) == (True, True, False)
    assert Head.of(head) is head
