"""One request in every format, and the codecs that read it."""

import json
from typing import Any

import numpy as np

from tests.support.exact import INPUTS
from torchrec_handler.archive.format import Signature
from torchrec_handler.message.predictor_pb2 import PredictionRequest
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.codecs.codec import Body, Model
from torchrec_handler.serve.codecs.columns import columns
from torchrec_handler.serve.codecs.json_document import JsonParser
from torchrec_handler.serve.request import RawRequest

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

SIGNATURE = Signature(inputs=INPUTS, methods={"forward": True}, result_metadata="dict_of_tensor")

ROWS = 2
FLOATS = [[31, 9.5, 23], [42, 8, 7]]
LENGTHS = [[1, 1], [2, 0], [0, 3]]
IDS = [7, 8, 3, 4, 1, 2, 3]
WEIGHTED_LENGTHS = [[1, 0], [2, 1]]
WEIGHTED_IDS = [5, 6, 7, 8]
WEIGHTS = [0.5, 1, 2, 0.25]
VECTORS = [[[1, 2, 3, 4], [5, 6, 7, 8]], [[0.5, 0, 0, 0], [0, 0, 0, 1]]]
"""[F, B, D]"""

COLUMNS: dict[str, Any] = {
    "float_features": FLOATS,
    "id_list_features.lengths": np.ravel(LENGTHS).tolist(),
    "id_list_features.values": IDS,
    "id_score_list_features.lengths": np.ravel(WEIGHTED_LENGTHS).tolist(),
    "id_score_list_features.values": WEIGHTED_IDS,
    "id_score_list_features.weights": WEIGHTS,
    "embedding_features": VECTORS,
}

INSTANCES: list[dict[str, Any]] = [
    {
        "age": 31,
        "price": 9.5,
        "hour": 23,
        "user": 7,
        "movie": [3, 4],
        "tags": [[5, 0.5]],
        "clicks": [[6, 1], [7, 2]],
        "image": [1, 2, 3, 4],
        "title": [0.5, 0, 0, 0],
    },
    {
        "age": 42,
        "price": 8,
        "hour": 7,
        "user": [8],
        "genres": [1, 2, 3],
        "clicks": [[8, 0.25]],
        "image": [5, 6, 7, 8],
        "title": [0, 0, 0, 1],
    },
]


def open_inference() -> dict[str, Any]:
    return {
        "id": "request 17",
        "inputs": [
            {
                "name": name,
                "shape": list(np.shape(data)),
                "datatype": "INT64" if name.endswith(("lengths", "values")) else "FP32",
                "data": np.ravel(data).tolist(),
            }
            for name, data in COLUMNS.items()
        ],
    }


def message() -> PredictionRequest:
    request = PredictionRequest(batch_size=ROWS)
    request.float_features.num_features = 3
    request.float_features.values = floats(FLOATS)
    request.id_list_features.num_features = 3
    request.id_list_features.lengths = ints(LENGTHS)
    request.id_list_features.values = ints(IDS)
    request.id_score_list_features.num_features = 2
    request.id_score_list_features.lengths = ints(WEIGHTED_LENGTHS)
    request.id_score_list_features.values = ints(WEIGHTED_IDS)
    request.id_score_list_features.weights = floats(WEIGHTS)
    request.embedding_features.num_features = 2
    request.embedding_features.values = floats(np.array(VECTORS).transpose(1, 0, 2))
    return request


def ints(values: Any) -> bytes:
    return np.array(values, "<i4").tobytes()


def floats(values: Any) -> bytes:
    return np.array(values, "<f4").tobytes()


BODIES: dict[str, bytes] = {
    "json columns": json.dumps(COLUMNS).encode(),
    "json rows": json.dumps({"instances": INSTANCES}).encode(),
    "open inference": json.dumps(open_inference()).encode(),
    "protobuf": message().SerializeToString(),
}


def content_type(name: str) -> str:
    return PROTOBUF if name == "protobuf" else JSON


def codecs(signature: Signature = SIGNATURE, /, **limits: int) -> Codecs:
    return Codecs("ranking", signature, Limits(**limits))


def signature(*inputs: Any) -> Signature:
    return Signature(inputs=inputs, methods={"forward": True}, result_metadata="dict_of_tensor")


def body(content: bytes) -> Body:
    return Body(raw(content), JsonParser(), 100)


def model(signature: Signature = SIGNATURE, /, **limits: int) -> Model:
    most = Limits(**limits)
    return Model(name="ranking", signature=signature, limits=most, columns=columns(signature, most))


def raw(body: bytes, content_type: str = JSON, accept: str = "") -> RawRequest:
    return RawRequest(body=body, content_type=content_type, accept=accept)
