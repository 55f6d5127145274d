"""Each error of a request, and what TorchServe answers for it."""

import pytest

from torchrec_handler import errors
from torchrec_handler.front.torchserve.answers import STATUSES, http_answer
from torchrec_handler.serve.request import Response


@pytest.mark.parametrize(
    ("error", "status", "phrase"),
    [
        (errors.InvalidRequest, 400, "Bad Request"),
        (errors.UnknownQualname, 404, "Not Found"),
        (errors.RequestTooLarge, 413, "Request Entity Too Large"),
        (errors.UnsupportedMediaType, 415, "Unsupported Media Type"),
        (errors.PredictError, 500, "Internal Server Error"),
        (errors.Overloaded, 503, "Service Unavailable"),
        (errors.OutOfMemory, 507, "Insufficient Storage"),
    ],
)
def test_statuses(error: type[errors.RequestError], status: int, phrase: str) -> None:
    assert STATUSES[error] == (status, phrase)


def test_every_error_of_a_request_has_a_status() -> None:
    assert set(STATUSES) == set(errors.RequestError.__subclasses__())


def test_an_answer_is_ok() -> None:
    answer = http_answer(Response(content_type="text/csv", body=b"1,2"))
    assert answer == (200, "OK", "text/csv", b"1,2")


def test_an_error_has_the_form_of_torchserves_own() -> None:
    error = errors.UnknownQualname(where="qualname", received="'x'", expected="one of forward")
    body = (
        b'{"code":404,"type":"UnknownQualname",'
        b'"message":"qualname: received \'x\', expected one of forward"}'
    )
    assert http_answer(error) == (404, "Not Found", "application/json", body)


def test_a_models_own_error_is_answered_as_what_it_is_made_from() -> None:
    class NoHistory(errors.InvalidRequest):
        pass

    class Odd(errors.RequestError):
        def __str__(self) -> str:
            raise ValueError

    assert http_answer(NoHistory("user 7")) == (
        400,
        "Bad Request",
        "application/json",
        b'{"code":400,"type":"NoHistory","message":"user 7"}',
    )
    status, *_, body = http_answer(Odd())
    assert status == 500
    assert b"(a message that cannot be shown)" in body
