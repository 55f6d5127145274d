"""The engine's answers as Triton's: output tensors, or its error."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as backend

from torchrec_handler.archive.repository import BODY, CONTENT_TYPE
from torchrec_handler.errors import (
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    PredictError,
    RequestError,
    UnknownQualname,
)
from torchrec_handler.serve.attempt import said
from torchrec_handler.serve.codecs import json_values
from torchrec_handler.serve.request import Response

CODES: Mapping[type[RequestError], str] = {
    UnknownQualname: "NOT_FOUND",
    PredictError: "INTERNAL",
    Overloaded: "UNAVAILABLE",
    OutOfMemory: "INTERNAL",
    RequestError: "INVALID_ARG",
}
"""Type of error -> Triton's code, which has one for all that is wrong with a request."""


class Answers:
    """Writes answers of one model."""

    def __init__(self, outputs: Collection[str]) -> None:
        """Take the outputs that the model's configuration names; Triton hands on no others."""
        self._outputs = frozenset(outputs)

    def write(self, outcome: Response | RequestError, request: Any) -> Any:
        """Write the answer to a request.

        Returns:
            A `pb_utils.InferenceResponse`. An answer to tensors is tensors, and JSON in `BODY`
            where its outputs are not those of the configuration, as of methods that give anything.
        """
        if isinstance(outcome, RequestError):
            return backend.InferenceResponse(error=_error(outcome))
        arrays = outcome.arrays
        if arrays and self._outputs.issuperset(arrays):
            tensors = [backend.Tensor(name, array[None]) for name, array in arrays.items()]
        else:
            document = json_values.encode(dict(arrays)) if arrays else outcome
            tensors = [
                backend.Tensor(BODY, _text(document.body)),
                backend.Tensor(CONTENT_TYPE, _text(document.content_type.encode())),
            ]
        wanted = request.requested_output_names()
        # They are all of them where a client names none.
        if len(wanted) < len(self._outputs):
            given = [tensor.name() for tensor in tensors]
            if other := set(wanted).difference(given):
                return backend.InferenceResponse(error=_error(_not_given(min(other), given)))
        return backend.InferenceResponse(tensors)


def _not_given(name: str, given: Iterable[str]) -> RequestError:
    """Triton lets an output pass that this answer has not, and leaves it out without a word."""
    expected = f"one of {', '.join(given)}"
    return InvalidRequest(where="outputs", received=name, expected=expected)


def _error(error: RequestError) -> Any:
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return backend.TritonError(said(error), getattr(backend.TritonError, code))


def _text(content: bytes) -> npt.NDArray[Any]:
    array = np.empty((1, 1), np.object_)
    array[0, 0] = content
    return array
