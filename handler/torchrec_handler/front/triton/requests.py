"""Triton's requests as the engine takes them.

Every tensor has a first axis of 1: Triton's batches are of requests, each of any number of rows.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from torchrec_handler.archive.repository import BODY, CONTENT_TYPE
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.request import AnyRequest, RawRequest, TypedRequest

QUALNAME = "qualname"
FORWARD = "forward"
PARAMETERS = (QUALNAME, CONTENT_TYPE, "content_encoding", "accept")
"""Of a request, those that are read; all are strings."""

NONE = ("", "{}", "null")
"""What Triton gives of a request without parameters, as most are."""
NOTHING: Mapping[str, str] = MappingProxyType({})


def read(request: Any) -> AnyRequest:
    """What a request holds: tensors, as they are, or a body.

    Args:
        request: a `pb_utils.InferenceRequest`.

    Raises:
        InvalidRequest: it holds both, a tensor is not of one request, or a parameter is no string.
    """
    text = request.parameters()
    given = NOTHING if text in NONE else _parameters(text)
    arrays: dict[str, Any] = {}
    for tensor in request.inputs():
        array = tensor.as_numpy()
        if array.shape[0] != 1:
            raise InvalidRequest(
                where=tensor.name(),
                received=f"shape {' x '.join(map(str, array.shape))}",
                expected="1 x …: a first axis of 1, for the request",
            )
        arrays[tensor.name()] = array[0]
    body = arrays.get(BODY)
    if body is None:
        return TypedRequest(arrays, given.get(QUALNAME, FORWARD))
    if len(arrays) > 1:
        others = ", ".join(name for name in arrays if name != BODY)
        raise InvalidRequest(where=BODY, received=f"it beside {others}", expected="it alone")
    return RawRequest(
        body=body.item(),
        content_type=given.get(CONTENT_TYPE, "").partition(";")[0].strip().lower(),
        content_encoding=given.get("content_encoding", ""),
        accept=given.get("accept", ""),
        qualname=given.get(QUALNAME, FORWARD),
    )


def _parameters(text: str) -> dict[str, str]:
    """Those that are read."""
    given = orjson.loads(text)
    found = {name: given[name] for name in PARAMETERS if name in given}
    for name, value in found.items():
        if not isinstance(value, str):
            raise InvalidRequest(
                where=f"parameters.{name}", received=shortened(str(value)), expected="a string"
            )
    return found
