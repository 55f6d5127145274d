"""JSON as it is: answers, and arguments of methods that are called alone."""

from typing import Any

import numpy as np
import orjson

from torchrec_handler.errors import PredictError
from torchrec_handler.serve.codecs.codec import NOTHING, Arguments, Asked, Body
from torchrec_handler.serve.codecs.json_document import check_names
from torchrec_handler.serve.codecs.json_memory import Memory
from torchrec_handler.serve.request import Response

JSON = "application/json"
CONTENT_TYPES = (JSON, "text/json")


def arguments(body: Body) -> tuple[Arguments, Asked]:
    """A JSON object's values.

    Raises:
        InvalidRequest: not a JSON object, or a name is given twice, however deep it lies.
        RequestTooLarge: it would take too much memory.
    """
    document = body.document
    _ = body.names  # each of them once
    if memory := Memory.of(body.content):
        memory.check_whole()
    if body.content.count(b"{") > 1:
        check_names(body.content)
    values: dict[str, Any] = document.as_dict()
    return values, NOTHING


def encode(answer: Any) -> Response:
    """Write an answer: arrays as lists, by the names that the model gave them.

    Raises:
        PredictError: a method without need_preproc returned something that JSON cannot hold.
    """
    try:
        body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)
    except TypeError as error:
        said = f"the answer cannot be written as JSON: {error}"
        raise PredictError(said) from error
    return Response(content_type=JSON, body=body)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    message = f"{type(value).__name__} is no JSON type"
    raise TypeError(message)
