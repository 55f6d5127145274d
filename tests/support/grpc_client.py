"""A client of TorchServe's gRPC, made from the .proto in its own jar."""

import importlib.util
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from grpc_tools import protoc

JAR = Path(str(distribution("torchserve").locate_file("ts/frontend/model-server.jar")))
SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
STREAM_SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions"
OPEN_INFERENCE = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService"


class GrpcClient:
    """Calls `Predictions` over a real channel."""

    def __init__(self, address: str, folder: Path) -> None:
        self._messages = compile_proto(_proto(folder), folder)
        self._channel = grpc.insecure_channel(address)
        self._stream = self._channel.unary_stream(
            STREAM_SERVICE,
            request_serializer=self._messages.PredictionsRequest.SerializeToString,
            response_deserializer=self._messages.PredictionResponse.FromString,
        )
        self._call = self._channel.unary_unary(
            SERVICE,
            request_serializer=self._messages.PredictionsRequest.SerializeToString,
            response_deserializer=self._messages.PredictionResponse.FromString,
        )

    def predict(self, model_name: str, **inputs: bytes) -> bytes:
        """The bytes of the answer; `grpc.RpcError` where TorchServe answers with a status."""
        request = self._messages.PredictionsRequest(model_name=model_name, input=inputs)
        answer: bytes = self._call(request, timeout=60).prediction
        return answer

    def stream(self, model_name: str, **inputs: bytes) -> list[bytes]:
        """The answers of `StreamPredictions`."""
        request = self._messages.PredictionsRequest(model_name=model_name, input=inputs)
        return [answer.prediction for answer in self._stream(request, timeout=60)]

    def close(self) -> None:
        self._channel.close()


class OpenInferenceClient:
    """Calls the Open Inference Protocol's service, messages as in `self.messages`."""

    def __init__(self, address: str, folder: Path) -> None:
        with zipfile.ZipFile(JAR) as jar:
            proto = Path(jar.extract("proto/open_inference_grpc.proto", folder))
        self.messages = compile_proto(proto, folder)
        self._channel = grpc.insecure_channel(address)

    def call(self, method: str, **fields: Any) -> Any:
        """The answer; `grpc.RpcError` where TorchServe answers with a status."""
        return self._channel.unary_unary(
            f"{OPEN_INFERENCE}/{method}",
            request_serializer=getattr(self.messages, f"{method}Request").SerializeToString,
            response_deserializer=getattr(self.messages, f"{method}Response").FromString,
        )(getattr(self.messages, f"{method}Request")(**fields), timeout=60)

    def close(self) -> None:
        self._channel.close()


def compile_proto(proto: Path, folder: Path) -> ModuleType:
    """Compile a .proto with protoc and import what it gives."""
    arguments = ["protoc", f"-I{proto.parent}", f"--python_out={folder}", proto.name]
    assert protoc.main(arguments) == 0
    name = f"{proto.stem}_pb2"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _proto(folder: Path) -> Path:
    """The jar's inference.proto, less the lines that need files which the jar does not hold."""
    with zipfile.ZipFile(JAR) as jar:
        text = jar.read("proto/inference.proto").decode()
    lines = [line for line in text.splitlines() if "google" not in line]
    path = folder / "torchserve_inference.proto"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
