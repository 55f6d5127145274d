"""Every error that users can meet, in one place, each with the HTTP status it answers with.

TorchRecServeError
├── BuildError                   the archiver could not build an archive
├── LoadError                    a worker could not load an archive (also a RuntimeError)
│   ├── ArchiveError             the archive is not what it says it is
│   ├── OptionError              a wrong `torchrec:` option
│   ├── FactoryError             the package or its PredictFactory failed
│   ├── WeightsError             weights and module do not fit
│   └── SelfTestError            the model does not answer as it did when it was built
├── AnswerError                  what a client got instead of an answer
└── RequestError                 one request failed
    ├── InvalidRequest       400 not decodable, wrong shape, type or value
    ├── UnknownQualname      404 no method of that name
    ├── RequestTooLarge      413 more rows or ids than the limits
    ├── UnsupportedMediaType 415 a content type that no codec reads
    ├── PredictError         500 the model raised on this request alone; the worker goes on
    ├── Overloaded           503 too much beside other requests; to be sent again
    └── OutOfMemory          507 not enough memory for this request
"""

from typing import ClassVar


class TorchRecServeError(Exception):
    """Base of all errors of this project."""


class BuildError(TorchRecServeError):
    """An archive could not be built. The message says what, where and what to do."""


class LoadError(TorchRecServeError, RuntimeError):
    """An archive could not be loaded.

    A `RuntimeError`, since TorchServe ends the worker without an answer on any other exception.
    """


class ArchiveError(LoadError):
    """A member is missing, damaged, or of a format version this code does not read."""


class OptionError(LoadError):
    """An unknown option or a wrong value in the `torchrec:` section."""


class FactoryError(LoadError):
    """The package could not be imported, or its factory raised or disagrees with itself."""


class WeightsError(LoadError):
    """Weights are missing, unexpected or of another shape than the module's."""


class SelfTestError(LoadError):
    """A recorded sample gives another output than it gave when the archive was built."""


class AnswerError(TorchRecServeError):
    """What `torchrec_handler.client` got instead of an answer."""

    def __init__(self, message: str, status: int, type: str) -> None:  # noqa: A002  the body's key
        """Keep the answer's status and its body's `type`."""
        super().__init__(message)
        self.status = status
        self.type = type


class RequestError(TorchRecServeError):
    """One request failed; the others of its batch are answered."""

    status: ClassVar[int] = 500
    phrase: ClassVar[str] = "Internal Server Error"

    @property
    def type(self) -> str:
        """The name that the body's `type` carries."""
        return type(self).__name__


class InvalidRequest(RequestError):
    """The request cannot be decoded, or a shape, type or value is wrong."""

    status = 400
    phrase = "Bad Request"


class UnknownQualname(RequestError):
    """The predict module has no served method of the name asked for."""

    status = 404
    phrase = "Not Found"


class RequestTooLarge(RequestError):
    """The request holds more rows or ids than the limits allow."""

    status = 413
    phrase = "Request Entity Too Large"


class UnsupportedMediaType(RequestError):
    """No codec reads the request's content type."""

    status = 415
    phrase = "Unsupported Media Type"


class PredictError(RequestError):
    """The model raised on this request alone; the worker goes on."""

    status = 500
    phrase = "Internal Server Error"


class Overloaded(RequestError):
    """Too much beside the requests that arrived with it: alone, or later, it would be answered."""

    status = 503
    phrase = "Service Unavailable"


class OutOfMemory(RequestError):
    """There was not enough memory to predict this request."""

    status = 507
    phrase = "Insufficient Storage"
