"""What TorchServe answers for each error of a request."""

from collections.abc import Mapping

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
