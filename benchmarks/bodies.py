"""Requests in each server's format, and the scores in each server's answers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from benchmarks.peers.stock import FEATURES, Inputs
from torchrec_handler.message.predictor_pb2 import (
    FloatFeatures,
    PredictionRequest,
    PredictionResponse,
    SparseFeatures,
)

JSON = "application/json"
BINARY_HEADER = "Inference-Header-Content-Length"
"""Of the Open Inference Protocol's binary extension: where its JSON ends."""

Scores = npt.NDArray[np.float32]
Tensors = Mapping[str, tuple[str, npt.NDArray[Any]]]
"""Name -> the protocol's datatype, and elements."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """One request, without the address."""

    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Format:
    """How requests and answers look."""

    name: str
    write: Callable[[Inputs], Body]
    read: Callable[[httpx.Response], Scores]
    has_scores: bool = True


def _json(document: object) -> Body:
    content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Body(headers={"Content-Type": JSON}, content=content)


def _write_columns(inputs: Inputs) -> Body:
    return _json(
        {
            "float_features": inputs.dense,
            "id_list_features.lengths": inputs.lengths,
            "id_list_features.values": inputs.values,
        }
    )


def _read_columns(answer: httpx.Response) -> Scores:
    return np.array(answer.json()["default"], dtype=np.float32)


def _write_protobuf(inputs: Inputs) -> Body:
    request = PredictionRequest(
        batch_size=inputs.rows,
        float_features=FloatFeatures(
            num_features=inputs.dense.shape[1], values=inputs.dense.tobytes()
        ),
        id_list_features=SparseFeatures(
            num_features=FEATURES,
            lengths=inputs.lengths.tobytes(),
            values=inputs.values.tobytes(),
        ),
    )
    headers = {"Content-Type": "application/x-protobuf"}
    return Body(headers=headers, content=request.SerializeToString())


def _read_protobuf(answer: httpx.Response) -> Scores:
    response = PredictionResponse.FromString(answer.content)
    return np.array(response.predictions["default"].data, dtype=np.float32)


def _tensors(inputs: Inputs) -> Tensors:
    """What Triton batches by its first axis, the rows."""
    by_row = (FEATURES, inputs.rows)
    return {
        "float_features": ("FP32", inputs.dense),
        "lengths": ("INT32", np.ascontiguousarray(inputs.lengths.reshape(by_row).T)),
        "values": ("INT32", np.ascontiguousarray(inputs.values.reshape(by_row).T)),
    }


def _our_tensors(inputs: Inputs) -> Tensors:
    """What this project's instances of Triton take: TorchRec's columns, of one request."""
    columns = {
        "float_features": ("FP32", inputs.dense),
        "id_list_features.lengths": ("INT32", inputs.lengths),
        "id_list_features.values": ("INT32", inputs.values),
    }
    return {name: (datatype, block[None]) for name, (datatype, block) in columns.items()}


def _write_kserve_json(inputs: Inputs, tensors: Callable[[Inputs], Tensors] = _tensors) -> Body:
    described = [
        {"name": name, "shape": block.shape, "datatype": datatype, "data": block.reshape(-1)}
        for name, (datatype, block) in tensors(inputs).items()
    ]
    return _json({"inputs": described, "outputs": [{"name": "default"}]})


def _read_kserve_json(answer: httpx.Response) -> Scores:
    return np.array(answer.json()["outputs"][0]["data"], dtype=np.float32)


def _write_kserve_binary(inputs: Inputs, make: Callable[[Inputs], Tensors] = _tensors) -> Body:
    tensors = make(inputs)
    described = [
        {
            "name": name,
            "shape": block.shape,
            "datatype": datatype,
            "parameters": {"binary_data_size": block.nbytes},
        }
        for name, (datatype, block) in tensors.items()
    ]
    outputs = [{"name": "default", "parameters": {"binary_data": True}}]
    header = orjson.dumps({"inputs": described, "outputs": outputs})
    return Body(
        headers={"Content-Type": "application/octet-stream", BINARY_HEADER: str(len(header))},
        content=header + b"".join(block.tobytes() for _, block in tensors.values()),
    )


def _read_kserve_binary(answer: httpx.Response) -> Scores:
    return np.frombuffer(answer.content[int(answer.headers[BINARY_HEADER]) :], dtype=np.float32)


def _write_table(inputs: Inputs) -> Body:
    """One array, which is what BentoML batches: 13 numbers, 26 lengths, 26 ids a row."""
    by_row = (FEATURES, inputs.rows)
    lengths, values = inputs.lengths.reshape(by_row).T, inputs.values.reshape(by_row).T
    # A float32 holds every id of a table of 100,000 rows.
    return _json({"rows": np.hstack([inputs.dense, lengths, values]).astype(np.float32)})


def _read_list(answer: httpx.Response) -> Scores:
    return np.array(answer.json(), dtype=np.float32)


def _read_nothing(answer: httpx.Response) -> Scores:
    if json.loads(answer.content) != {}:
        raise ValueError(answer.text)
    return np.zeros(0, dtype=np.float32)


COLUMNS = Format(name="JSON columns", write=_write_columns, read=_read_columns)
PROTOBUF = Format(name="protobuf", write=_write_protobuf, read=_read_protobuf)
KSERVE_JSON = Format(name="KServe v2 JSON", write=_write_kserve_json, read=_read_kserve_json)
KSERVE_BINARY = Format(
    name="KServe v2 binary", write=_write_kserve_binary, read=_read_kserve_binary
)
OUR_KSERVE_JSON = replace(KSERVE_JSON, write=partial(_write_kserve_json, tensors=_our_tensors))
OUR_KSERVE_BINARY = replace(KSERVE_BINARY, write=partial(_write_kserve_binary, make=_our_tensors))
TABLE = Format(name="JSON rows", write=_write_table, read=_read_list)
NOTHING = Format(
    name="JSON columns, no answer", write=_write_columns, read=_read_nothing, has_scores=False
)


def write_http(path: Path, target: str, bodies: Sequence[Body]) -> None:
    """Write whole HTTP requests for `load.lua`, each behind its size in four bytes.

    Args:
        path: the file.
        target: the address without its host.
        bodies: the requests.
    """
    with path.open("wb") as file:
        for body in bodies:
            head = [f"POST {target} HTTP/1.1", "Host: 127.0.0.1"]
            head += [f"{name}: {value}" for name, value in body.headers.items()]
            head += [f"Content-Length: {len(body.content)}", "", ""]
            request = "\r\n".join(head).encode() + body.content
            file.write(len(request).to_bytes(4, "little") + request)
