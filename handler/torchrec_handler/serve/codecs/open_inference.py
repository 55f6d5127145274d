"""Open Inference Protocol v2, its JSON form: tensors by name, with shape and datatype.

{"inputs": [{"name": "float_features", "shape": [B, F], "datatype": "FP32", "data": [...]}, ...]}
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_document import MOST_AXES, check_size, read_array, shown
from torchrec_handler.serve.request import Columns

INPUTS = "inputs"
DATATYPES: Mapping[str, bool] = {
    **dict.fromkeys(
        ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"), True
    ),
    **dict.fromkeys(("FP16", "FP32", "FP64", "BF16"), False),
}
"""The protocol's names of what may be sent -> whether it is an integer."""

ANSWERED: Mapping[str, str] = {
    "float32": "FP32",
    "float64": "FP64",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
}
"""numpy's names -> the protocol's."""


def decode(document: simdjson.Object, columns: Mapping[str, Column]) -> Columns:
    """Read a body.

    Raises:
        InvalidRequest: not the protocol's form, an unknown name, or shape and data disagree.
        RequestTooLarge: a tensor is longer than the limits allow.
    """
    tensors = document[INPUTS]
    if not isinstance(tensors, simdjson.Array):
        message = f"{INPUTS}: received {shown(tensors)}, expected an array of tensors"
        raise InvalidRequest(message)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for position, tensor in enumerate(tensors):
        where = f"{INPUTS}[{position}]"
        if not isinstance(tensor, simdjson.Object):
            message = f"{where}: received {shown(tensor)}, expected a tensor object"
            raise InvalidRequest(message)
        name = _get(where, tensor, "name")
        column = columns.get(name) if isinstance(name, str) else None
        if column is None:
            message = f"{where}.name: received {shown(name)}, expected one of {', '.join(columns)}"
            raise InvalidRequest(message)
        if name in arrays:
            message = f"{where}.name: {name} is given twice"
            raise InvalidRequest(message)
        arrays[name] = _tensor(f"{where} ({name})", tensor, column)
    identifier = document.get("id")
    return Columns(arrays=arrays, id=identifier if isinstance(identifier, str) else None)


def is_request(document: simdjson.Object) -> bool:
    """Whether a body is in the protocol's form, and no JSON object that has its own `inputs`."""
    tensors = document.get(INPUTS)
    if not isinstance(tensors, simdjson.Array) or len(tensors) == 0:
        return False
    first: Any = tensors[0]
    return isinstance(first, simdjson.Object) and "datatype" in first


def encode(
    arrays: Mapping[str, npt.NDArray[Any]], model_name: str, identifier: str | None
) -> bytes:
    """Write an answer.

    Args:
        arrays: output name -> tensor.
        model_name: as the server knows it.
        identifier: the request's `id`, given back.

    Raises:
        PredictError: the protocol has no data type for a tensor.
    """
    document: dict[str, Any] = {"model_name": model_name}
    if identifier is not None:
        document["id"] = identifier
    outputs = document["outputs"] = []
    for name, array in arrays.items():
        datatype = ANSWERED.get(array.dtype.name)
        if datatype is None:
            message = f"output {name!r}: {array.dtype.name} is no Open Inference data type"
            raise PredictError(message)
        data = np.ascontiguousarray(array).reshape(-1)
        outputs.append(
            {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}
        )
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _tensor(where: str, tensor: simdjson.Object, column: Column) -> npt.NDArray[Any]:
    datatype = _get(where, tensor, "datatype")
    is_integer = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if is_integer is None or (column.is_integer and not is_integer):
        kind = [name for name, integer in DATATYPES.items() if integer or not column.is_integer]
        message = f"{where}.datatype: received {shown(datatype)}, expected {', '.join(kind)}"
        raise InvalidRequest(message)
    shape = _shape(where, _get(where, tensor, "shape"))
    check_size(where, shape, column)
    # The data may be nested or flat, and flat it is as long as the whole tensor.
    data = read_array(f"{where}.data", _get(where, tensor, "data"), column)
    if data.shape not in (shape, (math.prod(shape),)):
        received = " x ".join(map(str, data.shape))
        expected = " x ".join(map(str, shape))
        message = f"{where}.data: received {received} elements, expected {expected} (its shape)"
        raise InvalidRequest(message)
    # numpy refuses large sizes beside a 0.
    return data.reshape(shape) if data.size else data


def _shape(where: str, value: Any) -> tuple[int, ...]:
    sizes: list[Any] = (
        value.as_list() if isinstance(value, simdjson.Array) and len(value) <= MOST_AXES else []
    )
    if not sizes or not all(type(size) is int and size >= 0 for size in sizes):
        message = (
            f"{where}.shape: received {shown(value)}, expected a list of 1 to {MOST_AXES} sizes"
        )
        raise InvalidRequest(message)
    return tuple(sizes)


def _get(where: str, tensor: simdjson.Object, key: str) -> Any:
    if key not in tensor:
        message = f"{where}.{key}: missing, expected name, shape, datatype and data"
        raise InvalidRequest(message)
    return tensor[key]
