"""Open Inference Protocol over gRPC: answers with all that TorchServe's frontend reads of them.

The frontend turns a ModelInfer call into the protocol's JSON and the answer's JSON back into a
ModelInferResponse (GRPCJob.java). It knows no error there: where `id`, `model_name`,
`model_version` or `outputs` is missing, or a number is null, the worker that answered is ended.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from torchrec_handler.serve.request import Response

CALL = {"body": {"content-type": "application/json"}}
"""What TorchServe tells of a ModelInfer call: a JSON body, and no header, as no HTTP request."""
DATATYPES = {"FP16": "FP32", "BF16": "FP32"}
"""What the frontend leaves out of the answer -> what holds the same numbers."""
OK = 200
NOT_A_NUMBER = "NaN"
"""What the frontend reads as a float that is not one."""
NOTHING_RECEIVED = (".data: received 0 elements", ".data: missing")
"""In an error's message, where the frontend handed a tensor on without its data."""
HINT = (
    "; TorchServe hands on contents, but neither raw_input_contents nor contents of FP16 and BF16"
)


def is_call(headers: Mapping[str, Any]) -> bool:
    """Whether a request came as a ModelInfer call."""
    return headers == CALL


def answer(response: Response, model_name: str, version: str) -> bytes:
    """Write an answer so that the frontend can read it.

    An error becomes the one output `error`, of datatype BYTES: the body that it has over HTTP. So
    does, as `default`, what a method answers that the protocol has no form for.
    """
    document = orjson.loads(response.body)
    if not isinstance(document, dict) or not isinstance(document.get("outputs"), list):
        document = {"outputs": [_as_bytes(response.status, document)]}
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


def _as_bytes(status: int, document: Any) -> dict[str, Any]:
    """An output that holds a JSON text."""
    is_error = status != OK
    if is_error and any(part in document["message"] for part in NOTHING_RECEIVED):
        document["message"] += HINT
    name = "error" if is_error else "default"
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [document]}
