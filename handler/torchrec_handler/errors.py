"""Every error that users can meet, in one place. What it is answered with is a front-end's choice.

TorchRecServeError
├── BuildError                   the archiver could not build an archive
├── ServeError                   `serve` or `bench` could not start a server, or lost it
├── LoadError                    a worker could not load an archive (also a RuntimeError)
│   ├── ArchiveError             the archive is not what it says it is
│   ├── OptionError              a wrong `torchrec:` option
│   ├── FactoryError             the package or its PredictFactory failed
│   ├── WeightsError             weights and module do not fit
│   └── SelfTestError            the model does not answer as it did when it was built
├── DeltaError                   a delta file is refused
├── Unusable                     a worker's process can answer nothing more, and ends
├── AnswerError                  what a client got instead of an answer
└── RequestError                 one request failed
    ├── InvalidRequest       not decodable, wrong shape, type or value
    ├── UnknownQualname      no method of that name
    ├── RequestTooLarge      more rows or ids than the limits
    ├── UnsupportedMediaType a content type that no codec reads
    ├── PredictError         the model raised on this request alone; the worker goes on
    ├── Overloaded           too much beside other requests; to be sent again
    └── OutOfMemory          not enough memory for this request
"""


class TorchRecServeError(Exception):
    """Base of all errors of this project."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """Keep what is wrong and, where that is known, what to do about it."""
        super().__init__(message)
        self.hint = hint

    @property
    def sentence(self) -> str:
        """What is wrong, without the hint."""
        return super().__str__()

    def __str__(self) -> str:
        """What is wrong, and the hint behind it."""
        return "; ".join(part for part in (self.sentence, self.hint) if part)


class BuildError(TorchRecServeError):
    """An archive could not be built. The message says what, where and what to do."""


class ServeError(TorchRecServeError):
    """A server could not be started, or ended. The message says why, and what to do."""


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


class DeltaError(TorchRecServeError):
    """A delta file is damaged, or not for the archive or the generation that it was given to."""

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        """Keep what is wrong, and one word for it, which metrics count by."""
        super().__init__(message, hint=hint)
        self.reason = reason


class Unusable(TorchRecServeError):
    """This process can answer nothing more, or nothing right; another one may."""


class AnswerError(TorchRecServeError):
    """What `torchrec_handler.client` got instead of an answer."""

    def __init__(self, message: str, status: int, type: str) -> None:  # noqa: A002  the body's key
        """Keep the answer's status and its body's `type`."""
        super().__init__(message)
        self.status = status
        self.type = type


class RequestError(TorchRecServeError):
    """One request failed; the others of its batch are answered."""

    def __init__(
        self,
        said: str | None = None,
        *,
        where: str | None = None,
        received: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Keep what is known, each without the words that `__str__` puts between them.

        Args:
            said: what none of the others can say; the sentence begins with it.
            where: the input, the part of the request or the output at fault, and the place in it.
            received: what stands there.
            expected: what may stand there.
            hint: what to do.
        """
        super().__init__(said, hint=hint)
        self.said = said
        self.where = where
        self.received = received
        self.expected = expected

    @property
    def sentence(self) -> str:
        """All that is known but the hint, as one sentence."""
        told = ", ".join(
            part
            for part in (
                self.said,
                self.received and f"received {self.received}",
                self.expected and f"expected {self.expected}",
            )
            if part
        )
        return ": ".join(part for part in (self.where, told) if part)

    @property
    def type(self) -> str:
        """The name that the body's `type` carries."""
        return type(self).__name__


class InvalidRequest(RequestError):
    """The request cannot be decoded, or a shape, type or value is wrong."""


class UnknownQualname(RequestError):
    """The predict module has no served method of the name asked for."""


class RequestTooLarge(RequestError):
    """The request holds more rows or ids than the limits allow."""


class UnsupportedMediaType(RequestError):
    """No codec reads the request's content type."""


class PredictError(RequestError):
    """The model raised on this request alone; the worker goes on."""


class Overloaded(RequestError):
    """Too much beside the requests that arrived with it: alone, or later, it would be answered."""


class OutOfMemory(RequestError):
    """There was not enough memory to predict this request."""
