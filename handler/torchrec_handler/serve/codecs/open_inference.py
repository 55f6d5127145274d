"""Open Inference Protocol v2, its JSON form: tensors by name, with shape and datatype.

{"inputs": [{"name": "float_features", "shape": [B, F], "datatype": "FP32", "data": [...]}, ...]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.serve.codecs import json_values
from torchrec_handler.serve.codecs.codec import Arguments, Asked, Body, Model, as_tensors, flat
from torchrec_handler.serve.codecs.json_arrays import count_lists, refuse_nested
from torchrec_handler.serve.codecs.json_document import names, shortened, shown
from torchrec_handler.serve.codecs.json_raw import check_features
from torchrec_handler.serve.codecs.open_tensors import (
    MOST_NAMES,
    PARAMETERS,
    Found,
    check_parameters,
    get,
    read_tensor,
)
from torchrec_handler.serve.request import Columns, Response

INPUTS = "inputs"
OUTPUTS = "outputs"

MOST_OUTPUTS = 4_096

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
                raise InvalidRequest(
                    where=f"{OUTPUTS}[{position}].name",
                    received=shown(name),
                    expected=f"one of {', '.join(arrays)}",
                )
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
            raise InvalidRequest(
                where=INPUTS, received=shown(tensors), expected="an array of tensors"
            )
        arrays: dict[str, npt.NDArray[Any]] = {}
        found = Found([], [])
        for position, tensor in enumerate(tensors):
            where = f"{INPUTS}[{position}]"
            if not isinstance(tensor, simdjson.Object):
                raise InvalidRequest(
                    where=where, received=shown(tensor), expected="a tensor object"
                )
            keys = names(where, tensor, MOST_NAMES)
            name = get(where, tensor, "name", keys)
            column = self._model.columns.get(name) if isinstance(name, str) else None
            if column is None:
                raise InvalidRequest(
                    where=f"{where}.name",
                    received=shown(name),
                    expected=f"one of {', '.join(self._model.columns)}",
                )
            if name in arrays:
                raise InvalidRequest(said=f"{name} is given twice", where=f"{where}.name")
            arrays[name] = read_tensor(f"{where} ({name})", tensor, keys, column, found)
        # Of lists there are `inputs`, a shape of each, and often `outputs`.
        lists = 1 + len(arrays) + (OUTPUTS in given)
        if body.content.count(b"[") != lists + sum(
            [count_lists(each[-1]) for each in found.arrays]
        ):
            refuse_nested(found.arrays)
        if found.raw:
            check_features(found.raw, arrays)
        if PARAMETERS in given:
            check_parameters(PARAMETERS, document[PARAMETERS])
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
                raise PredictError(
                    said=f"{array.dtype.name} is no Open Inference data type",
                    where=f"output {name!r}",
                )
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
        raise InvalidRequest(
            where=OUTPUTS, received=shown(value), expected="an array of objects with a name"
        )
    if len(value) > MOST_OUTPUTS:
        raise InvalidRequest(
            where=OUTPUTS, received=f"{len(value)} of them", expected=f"at most {MOST_OUTPUTS}"
        )
    found: dict[str, None] = {}
    for position, output in enumerate(value):
        where = f"{OUTPUTS}[{position}]"
        if not isinstance(output, simdjson.Object):
            raise InvalidRequest(
                where=where, received=shown(output), expected="an object with a name"
            )
        keys = names(where, output, MOST_NAMES)
        name = output["name"] if "name" in keys else None
        if not isinstance(name, str):
            raise InvalidRequest(
                where=f"{where}.name", received=shown(name), expected="an output's name"
            )
        if name in found:
            raise InvalidRequest(said=f"{shortened(name)} is given twice", where=f"{where}.name")
        if PARAMETERS in keys:
            check_parameters(f"{where}.{PARAMETERS}", output[PARAMETERS])
        found[name] = None
    return list(found)
