"""Open Inference Protocol v2, its JSON form: tensors by name, with shape and datatype.

{"inputs": [{"name": "float_features", "shape": [B, F], "datatype": "FP32", "data": [...]}, ...]}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson
import torch

from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.serve.codecs import json_values
from torchrec_handler.serve.codecs.codec import Arguments, Asked, Body, Model, as_tensors, flat
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_arrays import (
    MOST_AXES,
    check_size,
    count_lists,
    read_array,
    refuse_nested,
)
from torchrec_handler.serve.codecs.json_document import names, shortened, shown
from torchrec_handler.serve.request import Columns, Response

INPUTS = "inputs"
OUTPUTS = "outputs"
PARAMETERS = "parameters"

INTEGERS: Mapping[str, tuple[int, int]] = {
    name: (int(np.iinfo(name.lower()).min), int(np.iinfo(name.lower()).max))
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
}
FLOATS: Mapping[str, tuple[float, float]] = {
    name: (-largest, largest)
    for name, largest in (
        ("FP16", float(np.finfo("float16").max)),
        ("FP32", float(np.finfo("float32").max)),
        ("FP64", float(np.finfo("float64").max)),
        ("BF16", float(torch.finfo(torch.bfloat16).max)),
    )
}
DATATYPES = {**INTEGERS, **FLOATS}
"""The protocol's names of what may be sent -> its smallest and largest number."""

MOST_NAMES = 64
"""Of a tensor and of what is beside `inputs`: the protocol knows four, and clients add some."""

MOST_OUTPUTS = 4_096

Read = tuple[str, Any, Column, Sequence[int]]
"""An array's place, itself, what it is, and the shape that its lists have."""

BINARY = "binary_data"
"""How the parameters of the protocol's binary extension begin."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted(Asked):
    """What a request in the protocol's form asks of its answer, which is in that form too."""

    id: str | None = None
    """Given back."""
    outputs: Sequence[str] = ()
    """The outputs that are wanted, in this order; none for all."""

    def select(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the request named, one array a name; all where it named none.

        Raises:
            InvalidRequest: the model has no output of a name.
        """
        if not self.outputs:
            return answer
        arrays = flat(answer)
        for position, name in enumerate(self.outputs):
            if name not in arrays:
                message = (
                    f"{OUTPUTS}[{position}].name: received {shown(name)}, "
                    f"expected one of {', '.join(arrays)}"
                )
                raise InvalidRequest(message)
        return {name: arrays[name] for name in self.outputs}


class OpenInference:
    """Reads what has `inputs`, unless the model has an input of that name."""

    name = "open_inference"
    content_types = json_values.CONTENT_TYPES

    def __init__(self, model: Model) -> None:
        self._model = model
        self._is_known = INPUTS not in model.columns

    def reads(self, body: Body) -> bool:
        """Whether it has `inputs`."""
        return self._is_known and INPUTS in body.names

    def decode(self, body: Body) -> tuple[Columns, Wanted]:
        """Read a body.

        Raises:
            InvalidRequest: not the protocol's form, an unknown name, or shape and data disagree.
            RequestTooLarge: a tensor is longer than the limits allow.
        """
        document, given = body.document, body.names
        tensors = document[INPUTS]
        if not isinstance(tensors, simdjson.Array):
            message = f"{INPUTS}: received {shown(tensors)}, expected an array of tensors"
            raise InvalidRequest(message)
        arrays: dict[str, npt.NDArray[Any]] = {}
        read: list[Read] = []
        for position, tensor in enumerate(tensors):
            where = f"{INPUTS}[{position}]"
            if not isinstance(tensor, simdjson.Object):
                message = f"{where}: received {shown(tensor)}, expected a tensor object"
                raise InvalidRequest(message)
            keys = names(where, tensor, MOST_NAMES)
            name = _get(where, tensor, "name", keys)
            column = self._model.columns.get(name) if isinstance(name, str) else None
            if column is None:
                message = (
                    f"{where}.name: received {shown(name)}, "
                    f"expected one of {', '.join(self._model.columns)}"
                )
                raise InvalidRequest(message)
            if name in arrays:
                message = f"{where}.name: {name} is given twice"
                raise InvalidRequest(message)
            arrays[name] = _tensor(f"{where} ({name})", tensor, keys, column, read)
        # Of lists there are `inputs`, a shape of each, and often `outputs`.
        lists = 1 + len(arrays) + (OUTPUTS in given)
        if body.content.count(b"[") != lists + sum([count_lists(each[-1]) for each in read]):
            refuse_nested(read)
        if PARAMETERS in given:
            _check_parameters(PARAMETERS, document[PARAMETERS])
        identifier = document["id"] if "id" in given else None
        wanted = Wanted(
            id=identifier if isinstance(identifier, str) else None,
            outputs=_outputs(document[OUTPUTS]) if OUTPUTS in given else (),
        )
        return Columns(arrays=arrays), wanted

    def arguments(self, body: Body) -> tuple[Arguments, Asked]:
        """Tensors by name; of a JSON object that has `inputs` of its own, its values."""
        if not _has_tensors(body.document):
            return json_values.arguments(body)
        columns, wanted = self.decode(body)
        return as_tensors(columns), wanted

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:
        """Write an answer in the protocol's form, or as JSON where it was not asked in that.

        Raises:
            PredictError: the protocol has no data type for a tensor.
        """
        if not isinstance(asked, Wanted):
            return json_values.encode(answer)
        document: dict[str, Any] = {"model_name": self._model.name}
        if asked.id is not None:
            document["id"] = asked.id
        outputs = document["outputs"] = []
        for name, array in flat(answer).items():
            datatype = ANSWERED.get(array.dtype.name)
            if datatype is None:
                message = f"output {name!r}: {array.dtype.name} is no Open Inference data type"
                raise PredictError(message)
            data = np.ascontiguousarray(array).reshape(-1)
            outputs.append(
                {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}
            )
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content_type=json_values.JSON, body=body)


def _has_tensors(document: simdjson.Object) -> bool:
    tensors = document[INPUTS]
    if not isinstance(tensors, simdjson.Array) or len(tensors) == 0:
        return False
    first: Any = tensors[0]
    return isinstance(first, simdjson.Object) and "datatype" in first


def _outputs(value: Any) -> list[str]:
    """The names of the outputs that a body wants."""
    if not isinstance(value, simdjson.Array):
        message = f"{OUTPUTS}: received {shown(value)}, expected an array of objects with a name"
        raise InvalidRequest(message)
    if len(value) > MOST_OUTPUTS:
        message = f"{OUTPUTS}: received {len(value)} of them, expected at most {MOST_OUTPUTS}"
        raise InvalidRequest(message)
    found: dict[str, None] = {}
    for position, output in enumerate(value):
        where = f"{OUTPUTS}[{position}]"
        if not isinstance(output, simdjson.Object):
            message = f"{where}: received {shown(output)}, expected an object with a name"
            raise InvalidRequest(message)
        keys = names(where, output, MOST_NAMES)
        name = output["name"] if "name" in keys else None
        if not isinstance(name, str):
            message = f"{where}.name: received {shown(name)}, expected an output's name"
            raise InvalidRequest(message)
        if name in found:
            message = f"{where}.name: {shortened(name)} is given twice"
            raise InvalidRequest(message)
        if PARAMETERS in keys:
            _check_parameters(f"{where}.{PARAMETERS}", output[PARAMETERS])
        found[name] = None
    return list(found)


def _check_parameters(where: str, value: Any) -> None:
    """Parameters are read past, unless they say that data is, or is to be, outside the JSON."""
    if not isinstance(value, simdjson.Object):
        message = f"{where}: received {shown(value)}, expected an object"
        raise InvalidRequest(message)
    for name in names(where, value, MOST_NAMES):
        if name.startswith(BINARY) and value[name]:
            message = (
                f"{where}.{name}: the protocol's binary extension is not served; "
                "send and ask for data as JSON, or use protobuf"
            )
            raise InvalidRequest(message)


def _tensor(
    where: str,
    tensor: simdjson.Object,
    keys: Sequence[str],
    column: Column,
    read: list[Read],
) -> npt.NDArray[Any]:
    datatype = _get(where, tensor, "datatype", keys)
    known = INTEGERS if column.is_integer else DATATYPES
    if not isinstance(datatype, str) or datatype not in known:
        message = f"{where}.datatype: received {shown(datatype)}, expected {', '.join(known)}"
        raise InvalidRequest(message)
    if PARAMETERS in keys:
        _check_parameters(f"{where}.{PARAMETERS}", tensor[PARAMETERS])
    shape = _shape(where, _get(where, tensor, "shape", keys))
    check_size(where, math.prod(shape), column)
    # The data may be nested or flat, and flat it is as long as the whole tensor.
    value = _get(where, tensor, "data", keys)
    place = f"{where}.data"
    data = read_array(place, value, column)
    read.append((place, value, column, data.shape))
    if data.shape not in (shape, (math.prod(shape),)):
        received = " x ".join(map(str, data.shape))
        expected = " x ".join(map(str, shape))
        message = f"{place}: received {received} elements, expected {expected} (its shape)"
        raise InvalidRequest(message)
    _check_range(place, data, datatype)
    # numpy refuses large sizes beside a 0.
    return data.reshape(shape) if data.size else data


def _check_range(where: str, data: npt.NDArray[Any], datatype: str) -> None:
    """Refuse what the datatype that a tensor claims cannot hold."""
    if datatype == "INT64" and data.dtype == np.int64:
        return
    smallest, largest = DATATYPES[datatype]
    is_whole = datatype in INTEGERS
    if not data.size or (
        smallest <= data.min() and data.max() <= largest and not (is_whole and _has_parts(data))
    ):
        return
    bad = (data < smallest) | (data > largest)
    if is_whole:
        bad |= data != np.rint(data)
    position = np.unravel_index(int(bad.argmax()), data.shape)
    index = "".join(f"[{part}]" for part in position)
    what = f"integers from {smallest} to {largest}" if is_whole else f"up to {largest:g}"
    message = f"{where}{index}: received {data[position]}, expected {datatype} ({what})"
    raise InvalidRequest(message)


def _has_parts(data: npt.NDArray[Any]) -> bool:
    return data.dtype.kind == "f" and bool((data != np.rint(data)).any())


def _shape(where: str, value: Any) -> tuple[int, ...]:
    is_short = isinstance(value, simdjson.Array) and len(value) <= MOST_AXES
    sizes: list[Any] = list(value) if is_short else []
    if not sizes or not all(type(size) is int and size >= 0 for size in sizes):
        message = (
            f"{where}.shape: received {shown(value)}, expected a list of 1 to {MOST_AXES} sizes"
        )
        raise InvalidRequest(message)
    return tuple(sizes)


def _get(where: str, tensor: simdjson.Object, key: str, keys: Sequence[str]) -> Any:
    if key not in keys:
        message = f"{where}.{key}: missing, expected name, shape, datatype and data"
        raise InvalidRequest(message)
    return tensor[key]
