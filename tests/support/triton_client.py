"""Asks Triton over HTTP, as JSON and binary, and over gRPC with NVIDIA's own client."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Arrays = Mapping[str, npt.NDArray[Any]]
WAYS = ("json", "binary", "grpc")
"""The client's methods."""
LENGTH = "Inference-Header-Content-Length"
"""Of the binary extension: where its JSON ends."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Outputs by name without the first axis, or an error's message."""

    outputs: Arrays
    error: str = ""
    status: int | str = 200


class TritonClient:
    """For one server."""

    def __init__(self, url: str, grpc_port: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        self._grpc = triton.InferenceServerClient(f"127.0.0.1:{grpc_port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._grpc.close()

    def json(self, model: str, arrays: Arrays, first: int = 1, **parameters: Any) -> Answer:
        """Tensors as numbers, `first` times what one request has."""
        inputs = [
            {
                **_described(name, array),
                "shape": [first, *array.shape],
                "data": array.reshape(-1).tolist() * first,
            }
            for name, array in arrays.items()
        ]
        document = {"inputs": inputs, "parameters": parameters}
        return self._read(self._http.post(_path(model), json=document))

    def binary(self, model: str, arrays: Arrays, **parameters: Any) -> Answer:
        """Tensors as they lie in memory."""
        inputs = [
            {**_described(name, array), "parameters": {"binary_data_size": array.nbytes}}
            for name, array in arrays.items()
        ]
        header = json.dumps(
            {"inputs": inputs, "parameters": {**parameters, "binary_data_output": True}}
        ).encode()
        content = header + b"".join(array.tobytes() for array in arrays.values())
        return self._read(
            self._http.post(_path(model), content=content, headers={LENGTH: str(len(header))})
        )

    def grpc(
        self, model: str, arrays: Arrays, wanted: Sequence[str] = (), **parameters: Any
    ) -> Answer:
        """Tensors by NVIDIA's client; `wanted` outputs, or all."""
        inputs = []
        for name, array in arrays.items():
            shape = [1, *array.shape]
            one = triton.InferInput(name, shape, np_to_triton_dtype(array.dtype))
            one.set_data_from_numpy(array.reshape(shape))
            inputs.append(one)
        outputs = [triton.InferRequestedOutput(name) for name in wanted] or None
        try:
            result = self._grpc.infer(model, inputs, outputs=outputs, parameters=parameters or None)
        except InferenceServerException as error:
            return Answer(outputs={}, error=str(error.message()), status=str(error.status()))
        names = [output.name for output in result.get_response().outputs]
        return Answer(outputs={name: result.as_numpy(name)[0] for name in names})

    def body(self, model: str, content: bytes, **parameters: Any) -> Answer:
        """Any body, as one tensor of one element."""
        array = np.array([content], np.object_)
        return self.grpc(model, {"body": array}, **parameters)

    def get(self, path: str) -> Any:
        """What Triton itself tells."""
        return self._http.get(path).json()

    def _read(self, response: httpx.Response) -> Answer:
        length = int(response.headers.get(LENGTH, len(response.content)))
        document = json.loads(response.content[:length])
        if "error" in document:
            return Answer(outputs={}, error=document["error"], status=response.status_code)
        outputs, at = {}, length
        for output in document["outputs"]:
            dtype = numpys(output["datatype"])
            if "data" in output:
                array = np.array(output["data"], dtype)
            else:
                end = at + output["parameters"]["binary_data_size"]
                array, at = np.frombuffer(response.content[at:end], dtype), end
            outputs[output["name"]] = array.reshape(output["shape"])[0]
        return Answer(outputs=outputs)


def _path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _described(name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    shape: Sequence[int] = [1, *array.shape]
    return {"name": name, "shape": shape, "datatype": np_to_triton_dtype(array.dtype)}


def numpys(datatype: str) -> Any:
    """numpy's type of the protocol's."""
    return np.object_ if datatype == "BYTES" else datatype.lower().replace("fp", "float")
