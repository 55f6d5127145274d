"""Each error of a request, and what TorchServe answers for it."""

import pytest

from torchrec_handler import errors
from torchrec_handler.front.torchserve.answers import STATUSES


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
