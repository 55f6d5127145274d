"""JSON columns: TorchRec's input tensors by name.

{"float_features": [[...F numbers...], ...B rows...],
 "id_list_features.lengths": [...F*B...], "id_list_features.values": [...N...]}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_document import (
    count_lists,
    read_array,
    refuse_nested,
    shortened,
    shown,
)
from torchrec_handler.serve.request import Columns

BATCH_SIZE = "batch_size"


def decode(
    document: simdjson.Object,
    body: bytes | bytearray,
    given: Sequence[str],
    columns: Mapping[str, Column],
) -> Columns:
    """Read a body.

    Args:
        document: the body, parsed.
        body: the same.
        given: its names.
        columns: what it may hold.

    Raises:
        InvalidRequest: an unknown name, or not an array of numbers.
        RequestTooLarge: an array holds more than the limits allow.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    batch_size: int | None = None
    for name in given:
        column = columns.get(name)
        if column is not None:
            arrays[name] = read_array(name, document[name], column)
        elif name == BATCH_SIZE:
            batch_size = _batch_size(document[name])
        else:
            message = (
                f"{shortened(name)}: unknown input, expected {', '.join(columns)} or {BATCH_SIZE} "
                "(or instances, or inputs)"
            )
            raise InvalidRequest(message)
    if body.count(b"[") != sum(count_lists(array.shape) for array in arrays.values()):
        refuse_nested(
            (name, document[name], columns[name], array.shape) for name, array in arrays.items()
        )
    return Columns(arrays=arrays, batch_size=batch_size)


def encode(answer: Any) -> bytes:
    """Write an answer: arrays as lists, by the names that the model gave them.

    Raises:
        PredictError: a method without need_preproc returned something that JSON cannot hold.
    """
    try:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)
    except TypeError as error:
        message = f"the answer cannot be written as JSON: {error}"
        raise PredictError(message) from error


def _batch_size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        message = f"{BATCH_SIZE}: received {shown(value)}, expected a positive integer"
        raise InvalidRequest(message)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    message = f"{type(value).__name__} is no JSON type"
    raise TypeError(message)
