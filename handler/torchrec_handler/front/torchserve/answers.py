"""What TorchServe answers: status, phrase and body, for errors of requests too."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from torchrec_handler.errors import (
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    PredictError,
    RequestError,
    RequestTooLarge,
    UnknownQualname,
    UnsupportedMediaType,
)
from torchrec_handler.serve.attempt import said
from torchrec_handler.serve.request import Response

STATUSES: Mapping[type[RequestError], tuple[int, str]] = {
    InvalidRequest: (400, "Bad Request"),
    UnknownQualname: (404, "Not Found"),
    RequestTooLarge: (413, "Request Entity Too Large"),
    UnsupportedMediaType: (415, "Unsupported Media Type"),
    PredictError: (500, "Internal Server Error"),
    Overloaded: (503, "Service Unavailable"),
    OutOfMemory: (507, "Insufficient Storage"),
}
"""Type of error -> HTTP status and its phrase."""


class HttpAnswer(NamedTuple):
    """What goes over HTTP."""

    status: int
    phrase: str
    content_type: str
    body: bytes


def http_answer(outcome: Response | RequestError) -> HttpAnswer:
    """An answer, or an error in the form that TorchServe's own errors have."""
    if isinstance(outcome, Response):
        return HttpAnswer(200, "OK", outcome.content_type, outcome.body)
    body = orjson.dumps(error_document(outcome))
    return HttpAnswer(*_status(outcome), "application/json", body)


def error_document(error: RequestError) -> dict[str, Any]:
    """Status, type and message."""
    status, _ = _status(error)
    return {"code": status, "type": error.type, "message": said(error)}


def _status(error: RequestError) -> tuple[int, str]:
    """Of its type, or of what that is made from: a model may raise errors of its own."""
    kinds = (kind for kind in type(error).__mro__ if kind in STATUSES)
    return STATUSES[next(kinds, PredictError)]
