"""TorchRec's own request message, `PredictionRequest`, and its `PredictionResponse`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.message.predictor_pb2 import PredictionRequest, PredictionResponse
from torchrec_handler.serve.codecs.codec import (
    NOTHING,
    Arguments,
    Asked,
    Body,
    Model,
    as_tensors,
    flat,
)
from torchrec_handler.serve.request import Columns, Response

PROTOBUF = "application/x-protobuf"

FIELDS: Mapping[str, str] = {
    "float_features": "dense",
    "id_list_features": "sparse",
    "id_score_list_features": "weighted_sparse",
    "embedding_features": "embedding",
    "unary_features": "sparse",
}
"""The message's fields -> the batching type of the input each one feeds."""

SPARSE = frozenset({"sparse", "weighted_sparse"})

INT32 = np.dtype("<i4")
INT64 = np.dtype("<i8")
FLOAT32 = np.dtype("<f4")


class Protobuf:
    """Reads what is in no other format."""

    name = "protobuf"
    content_types = (PROTOBUF, "application/protobuf", "application/octet-stream")

    def __init__(self, model: Model) -> None:
        self._signature = model.signature

    def reads(self, body: Body) -> bool:
        """Whether it is no JSON: nothing else tells a message from other bytes."""
        return not body.is_json

    def decode(self, body: Body) -> tuple[Columns, Asked]:
        """Read a message; its arrays are views of its bytes.

        Raises:
            InvalidRequest: not the message, a field that the model has no input for, or bytes that
                do not fit num_features and batch_size.
        """
        try:
            request = PredictionRequest.FromString(bytes(body.content))
        except DecodeError:
            raise InvalidRequest(
                said="not a PredictionRequest (truncated, or another message)", where="body"
            ) from None
        rows = request.batch_size
        if rows < 1:
            raise InvalidRequest(where="batch_size", received=str(rows), expected="at least 1")
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, kind in FIELDS.items():
            if not request.HasField(name):
                continue
            field = getattr(request, name)
            if field.num_features == 0 and not field.ListFields():
                continue
            entry = _input(name, kind, self._signature)
            if entry.name in arrays or f"{entry.name}.lengths" in arrays:
                raise InvalidRequest(said=f"another field gave {entry.name} already", where=name)
            if field.num_features < 1:
                raise InvalidRequest(
                    where=f"{name}.num_features",
                    received=str(field.num_features),
                    expected="at least 1",
                )
            if entry.type == "dense":
                arrays[entry.name] = _dense(name, field, rows)
            elif entry.type == "embedding":
                arrays[entry.name] = _embedding(name, entry, field, rows)
            else:
                arrays.update(_sparse(name, entry, field))
        return Columns(arrays=arrays, batch_size=rows), NOTHING

    def arguments(self, body: Body) -> tuple[Arguments, Asked]:
        """Tensors by name."""
        columns, asked = self.decode(body)
        return as_tensors(columns), asked

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:  # noqa: ARG002
        """Write an answer, every tensor flat, as the message has it.

        Raises:
            PredictError: a tensor holds no numbers.
        """
        response = PredictionResponse()
        for name, array in flat(answer).items():
            if array.dtype.kind not in "biuf":
                raise PredictError(
                    said=f"{array.dtype.name} cannot be written as floats", where=f"output {name!r}"
                )
            with np.errstate(over="ignore"):
                data = array.reshape(-1).astype(np.float32)
            response.predictions[name].data.extend(data.tolist())
        return Response(content_type=PROTOBUF, body=response.SerializeToString())


def _input(name: str, kind: str, signature: Signature) -> InputSignature:
    """The input of that name, or the only one of its type where the model names it otherwise."""
    for entry in signature.inputs:
        if entry.name != name:
            continue
        if (entry.type in SPARSE) == (kind in SPARSE):
            return entry
        raise InvalidRequest(
            said=f"the model's input of that name is {entry.type}, the field is {kind}", where=name
        )
    same = [entry for entry in signature.inputs if entry.type == kind and entry.name not in FIELDS]
    if len(same) == 1:
        return same[0]
    raise InvalidRequest(
        said="unknown input",
        where=name,
        expected=", ".join(entry.name for entry in signature.inputs),
    )


def _dense(name: str, field: Any, rows: int) -> npt.NDArray[Any]:
    values = _array(f"{name}.values", field.values, FLOAT32)
    features = field.num_features
    if values.size not in (features * rows, features):
        raise InvalidRequest(
            where=f"{name}.values",
            received=f"{values.size} numbers",
            expected=f"{rows} rows x {features} features = {features * rows}",
        )
    return values.reshape(-1, features)


def _embedding(name: str, entry: InputSignature, field: Any, rows: int) -> npt.NDArray[Any]:
    """The message's [B, F, D] as [F, B, D]; one row for all needs a known D to be told apart."""
    values = _array(f"{name}.values", field.values, FLOAT32)
    features = field.num_features
    given = 1 if entry.width and values.size == features * entry.width else rows
    if values.size == 0 or values.size % (features * given):
        raise InvalidRequest(
            where=f"{name}.values",
            received=f"{values.size} numbers",
            expected=f"{rows} rows x {features} features x {entry.width or 'D'} wide",
        )
    return values.reshape(given, features, -1).transpose(1, 0, 2)


def _sparse(name: str, entry: InputSignature, field: Any) -> dict[str, npt.NDArray[Any]]:
    if entry.num_features not in (None, field.num_features):
        raise InvalidRequest(
            where=f"{name}.num_features",
            received=str(field.num_features),
            expected=str(entry.num_features),
        )
    lengths = _array(f"{name}.lengths", field.lengths, INT32)
    # The client in TorchRec's repository sends its ids as int64.
    is_long = 0 < len(field.values) == INT64.itemsize * int(lengths.sum())
    arrays = {
        f"{entry.name}.lengths": lengths,
        f"{entry.name}.values": _array(f"{name}.values", field.values, INT64 if is_long else INT32),
    }
    if entry.type == "weighted_sparse":
        arrays[f"{entry.name}.weights"] = _array(f"{name}.weights", field.weights, FLOAT32)
    return arrays


def _array(where: str, value: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if len(value) % dtype.itemsize:
        raise InvalidRequest(
            where=where, received=f"{len(value)} bytes", expected=f"a multiple of {dtype.itemsize}"
        )
    return np.frombuffer(value, dtype=dtype)
