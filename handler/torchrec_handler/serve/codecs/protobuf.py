"""TorchRec's own request message, `PredictionRequest`, and its `PredictionResponse`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from torchrec_handler.archive import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.codecs.predictor_pb2 import PredictionRequest, PredictionResponse
from torchrec_handler.serve.request import Columns

FIELDS: Mapping[str, str] = {
    "float_features": "dense",
    "id_list_features": "sparse",
    "id_score_list_features": "weighted_sparse",
    "embedding_features": "embedding",
    "unary_features": "sparse",
}
"""The message's fields -> the batching type of the input each one feeds."""

INT32 = np.dtype("<i4")
FLOAT32 = np.dtype("<f4")


def decode(body: bytes | bytearray, signature: Signature) -> Columns:
    """Read a message; its arrays are views of its bytes.

    Raises:
        InvalidRequest: not the message, a field that the model has no input for, or bytes that do
            not fit num_features and batch_size.
    """
    try:
        request = PredictionRequest.FromString(bytes(body))
    except DecodeError:
        message = "body: not a PredictionRequest (truncated, or another message)"
        raise InvalidRequest(message) from None
    rows = request.batch_size
    if rows < 1:
        message = f"batch_size: received {rows}, expected at least 1"
        raise InvalidRequest(message)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, kind in FIELDS.items():
        field = getattr(request, name)
        if field.num_features == 0 and not field.values:
            continue
        entry = _input(name, kind, signature)
        if field.num_features < 1:
            message = f"{name}.num_features: received {field.num_features}, expected at least 1"
            raise InvalidRequest(message)
        if kind in ("dense", "embedding"):
            arrays[entry.name] = _floats(name, kind, field, rows)
        else:
            arrays.update(_sparse(name, entry, field))
    return Columns(arrays=arrays, batch_size=rows)


def encode(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Write an answer, every tensor flat, as the message has it."""
    response = PredictionResponse()
    for name, array in arrays.items():
        response.predictions[name].data.extend(array.reshape(-1).astype(np.float32))
    return response.SerializeToString()


def _input(name: str, kind: str, signature: Signature) -> InputSignature:
    """The input of that name, or the only one of its type where the model names it otherwise."""
    for entry in signature.inputs:
        if entry.name == name:
            return entry
    same = [entry for entry in signature.inputs if entry.type == kind and entry.name not in FIELDS]
    if len(same) == 1:
        return same[0]
    message = (
        f"{name}: unknown input, expected {', '.join(entry.name for entry in signature.inputs)}"
    )
    raise InvalidRequest(message)


def _floats(name: str, kind: str, field: Any, rows: int) -> npt.NDArray[Any]:
    values = _array(f"{name}.values", field.values, FLOAT32)
    features = field.num_features
    if kind == "dense":
        if values.size not in (features * rows, features):
            message = (
                f"{name}.values: received {values.size} numbers, expected {rows} rows x "
                f"{features} features = {features * rows}"
            )
            raise InvalidRequest(message)
        return values.reshape(-1, features)
    if values.size == 0 or values.size % (features * rows):
        message = (
            f"{name}.values: received {values.size} numbers, expected {rows} rows x "
            f"{features} features x D"
        )
        raise InvalidRequest(message)
    return values.reshape(rows, features, -1).transpose(1, 0, 2)


def _sparse(name: str, entry: InputSignature, field: Any) -> dict[str, npt.NDArray[Any]]:
    if entry.num_features not in (None, field.num_features):
        message = (
            f"{name}.num_features: received {field.num_features}, expected {entry.num_features}"
        )
        raise InvalidRequest(message)
    arrays = {
        f"{entry.name}.lengths": _array(f"{name}.lengths", field.lengths, INT32),
        f"{entry.name}.values": _array(f"{name}.values", field.values, INT32),
    }
    if entry.type == "weighted_sparse":
        arrays[f"{entry.name}.weights"] = _array(f"{name}.weights", field.weights, FLOAT32)
    return arrays


def _array(where: str, value: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if len(value) % dtype.itemsize:
        message = f"{where}: received {len(value)} bytes, expected a multiple of {dtype.itemsize}"
        raise InvalidRequest(message)
    return np.frombuffer(value, dtype=dtype)
