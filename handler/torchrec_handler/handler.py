"""The one class that TorchServe sees, and the only module that imports `ts`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler

from torchrec_handler import options as torchrec_options
from torchrec_handler.load import loader
from torchrec_handler.load.factory import FORWARD
from torchrec_handler.serve import engine
from torchrec_handler.serve.request import RawRequest

QUALNAME = "qualname"
QUALNAME_HEADER = "X-TorchRec-Qualname"


class TorchRecHandler(BaseHandler):  # type: ignore[misc]  # ts has no types
    """Loads an archive once, then answers batches of requests."""

    def initialize(self, context: Any) -> None:
        """Load the archive that TorchServe extracted.

        Raises:
            LoadError: a RuntimeError, whose first line says what to do.
        """
        properties = context.system_properties
        options = torchrec_options.read_options(context.model_yaml_config)
        self.context = context
        self.manifest = context.manifest
        self.device = _device(options.device, properties.get("gpu_id"))
        predictor = loader.load(Path(properties["model_dir"]), options, self.device)
        self.model = predictor.module
        self.engine = engine.Engine(context.model_name, predictor, options)
        self.initialized = True

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch.

        Args:
            data: per request its body under `body` (HTTP) or `data` (gRPC), and the query's
                parameters.
            context: TorchServe's, for headers in, status and headers out.
        """
        requests = [_raw(item, context, index) for index, item in enumerate(data)]
        bodies = []
        for index, response in enumerate(self.engine.predict(requests)):
            context.set_response_status(response.status, response.phrase, index)
            context.set_response_content_type(index, response.content_type)
            bodies.append(response.body)
        return bodies


def _device(wanted: str, gpu_id: int | None) -> torch.device:
    if wanted == "cpu" or not torch.cuda.is_available() or (wanted == "auto" and gpu_id is None):
        return torch.device("cpu")
    device = torch.device("cuda", gpu_id or 0)
    torch.cuda.set_device(device)
    return device


def _raw(item: Mapping[str, Any], context: Any, index: int) -> RawRequest:
    name = "body" if "body" in item else "data"
    body = item.get(name, b"")
    header = context.get_request_header(index, name)
    content_type = header.get("content-type", "") if isinstance(header, Mapping) else ""
    qualname = item.get(QUALNAME) or context.get_request_header(index, QUALNAME_HEADER) or FORWARD
    return RawRequest(
        body=body.encode() if isinstance(body, str) else body,
        accept=context.get_request_header(index, "Accept") or "",
        content_type=content_type.partition(";")[0].strip().lower(),
        qualname=bytes(qualname).decode("utf-8", "replace")
        if isinstance(qualname, bytes | bytearray)
        else str(qualname),
    )
