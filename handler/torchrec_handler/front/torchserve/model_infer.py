"""Open Inference Protocol over gRPC: answers with all that TorchServe's frontend reads of them.

The frontend turns a ModelInfer call into the protocol's JSON, strings in base64, and the answer's
JSON back into a ModelInferResponse (GRPCJob.java). It knows no error there: where `id`,
`model_name`, `model_version` or `outputs` is missing, or a number is null, the worker that answered
is ended.
"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import orjson

from torchrec_handler.errors import RequestError
from torchrec_handler.front.torchserve.answers import error_document
from torchrec_handler.serve.request import Response

CALL = {"body": {"content-type": "application/json"}}
"""What TorchServe tells of a ModelInfer call: a JSON body, and no header, as no HTTP request."""
DATATYPES = {"FP16": "FP32", "BF16": "FP32"}
"""What the frontend leaves out of the answer -> what holds the same numbers."""
NOT_A_NUMBER = "NaN"
"""What the frontend reads as a float that is not one."""
HINT = (
    "; TorchServe hands on contents, but neither raw_input_contents nor contents of FP16 and BF16"
)


def is_call(headers: Mapping[str, Any]) -> bool:
    """Whether a request came as a ModelInfer call."""
    return headers == CALL


def with_texts(body: bytes | bytearray) -> bytes | bytearray:
    """A call's body with its strings as they were sent: the frontend writes BYTES in base64.

    Bytes that are no UTF-8 become null, which is refused as any null is.
    """
    if b'"BYTES"' not in body:
        return body
    try:
        document = orjson.loads(body)
        for tensor in document["inputs"]:
            if tensor["datatype"] == "BYTES":
                tensor["data"] = list(map(_text, tensor["data"]))
        return orjson.dumps(document)
    except (ValueError, LookupError, TypeError):
        return body  # whose reader tells what is wrong


def _text(encoded: str) -> str | None:
    try:
        return b64decode(encoded, validate=True).decode()
    except UnicodeDecodeError:
        return None


def answer(outcome: Response | RequestError, model_name: str, version: str) -> bytes:
    """Write an answer so that the frontend can read it.

    An error becomes the one output `error`, of datatype BYTES: the body that it has over HTTP. So
    does, as `default`, what a method answers that the protocol has no form for.
    """
    if isinstance(outcome, RequestError):
        document = {"outputs": [_as_bytes("error", _error(outcome))]}
    else:
        document = orjson.loads(outcome.body)
        if not isinstance(document, dict) or not isinstance(document.get("outputs"), list):
            document = {"outputs": [_as_bytes("default", document)]}
    outputs = document["outputs"]
    for output in outputs:
        output["datatype"] = DATATYPES.get(output["datatype"], output["datatype"])
        if None in output["data"]:
            output["data"] = [NOT_A_NUMBER if one is None else one for one in output["data"]]
    return orjson.dumps(
        {
            "id": document.get("id", ""),
            "model_name": model_name,
            "model_version": version,
            "outputs": outputs,
        }
    )


def _error(error: RequestError) -> dict[str, Any]:
    document = error_document(error)
    is_without_data = error.said == "missing" or error.received == "0 elements"
    if is_without_data and (error.where or "").endswith(".data"):
        document["message"] += HINT
    return document


def _as_bytes(name: str, document: Any) -> dict[str, Any]:
    """An output that holds a JSON text."""
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [document]}
