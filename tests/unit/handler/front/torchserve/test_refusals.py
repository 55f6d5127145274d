"""Refused requests are told of in the log, a line each, as long as they are few."""

import logging

import pytest

from torchrec_handler.errors import InvalidRequest, Overloaded
from torchrec_handler.front.torchserve.refusals import MOST_LINES, Refusals


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def test_a_line_names_status_type_request_method_and_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = InvalidRequest(where="lengths", received="2", expected="3")
    Refusals("ranking").tell("forward", "0a1b", error)
    (line,) = caplog.messages
    asked = "request 0a1b, forward of ranking"
    assert line == f"Refused: 400 InvalidRequest, {asked}: lengths: received 2, expected 3"


def test_what_a_client_sends_makes_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    error = InvalidRequest(where="unknown\r\n[METRICS]name.count:1|#\x1b[2J\u2028é")
    Refusals("ranking").tell("for\nward", "0\n1", error)
    (line,) = caplog.messages
    asked = r"request 0\n1, for\nward of ranking"
    said = r"unknown\r\n[METRICS]name.count:1|#\x1b[2J\u2028é"
    assert line == f"Refused: 400 InvalidRequest, {asked}: {said}"


def test_long_messages_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    Refusals("ranking").tell("m" * 10_000, "0", InvalidRequest("x" * 10_000))
    assert len(caplog.messages[0]) < 1_000


def test_many_are_counted_by_type_until_the_next_while(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals("ranking")
    for _ in range(MOST_LINES):
        refusals.tell("forward", "0", InvalidRequest("bad"))
    refusals.tell("forward", "1", InvalidRequest("bad"))
    for _ in range(2):
        refusals.tell("forward", "2", Overloaded("full"))
    assert len(caplog.messages) == MOST_LINES
    refusals.next()
    assert caplog.messages[MOST_LINES:] == [
        "Refused: 3 more, not logged: 2 x 503 Overloaded, 1 x 400 InvalidRequest"
    ]
    refusals.next()
    refusals.tell("forward", "3", Overloaded("full"))
    assert caplog.messages[MOST_LINES + 1 :] == [
        "Refused: 503 Overloaded, request 3, forward of ranking: full"
    ]
