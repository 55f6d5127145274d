"""The one class that TorchServe sees; only this and `socket_reader` import `ts`."""

import fcntl
import gc
import logging
import os
import stat
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler

from torchrec_handler import options as torchrec_options
from torchrec_handler import socket_reader
from torchrec_handler.errors import LoadError, OptionError
from torchrec_handler.load import loader
from torchrec_handler.load.factory import FORWARD
from torchrec_handler.serve import engine
from torchrec_handler.serve.request import RawRequest

logger = logging.getLogger(__name__)

QUALNAME = "qualname"
QUALNAME_HEADER = "x-torchrec-qualname"
URL_PATH = "url_path"
"""TorchServe's own name for what follows /predictions/NAME/VERSION/."""
EXPLAIN = "explain"
"""TorchServe's own header of /explanations/NAME, taken as the name of the method to call."""
DESCRIBE = "describe"
"""TorchServe's own header of GET /models/NAME?customized=true."""

STDOUT = 1
LONGEST_READ_SECONDS = 2.0
"""How long a failed worker waits for the frontend to read its last lines."""
WRITE_SECONDS = 0.2
"""How long the frontend is given to log lines that it has read."""


class TorchRecHandler(BaseHandler):
    """Loads an archive once, then answers batches of requests."""

    def initialize(self, context: Any) -> None:
        """Load the archive that TorchServe extracted.

        Raises:
            LoadError: a RuntimeError, whose first line says what to do.
        """
        try:
            self._load(context)
        except LoadError as error:
            # Once TorchServe has the answer that loading failed, it closes the worker's output and
            # drops what it has not read, which on a busy machine can be all that it was told.
            logger.error("%s: %s", type(error).__name__, error)  # noqa: TRY400  TorchServe's task
            _wait_until_read(STDOUT, LONGEST_READ_SECONDS)
            raise
        socket_reader.install()
        self.initialized = True

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch.

        Args:
            data: per request its body under `body` (HTTP) or `data` (gRPC and forms), and those of
                the query's parameters that TorchServe hands on.
            context: TorchServe's, for headers in, status and headers out.
        """
        headers = [_lower_case(context.get_all_request_header(at)) for at in range(len(data))]
        requests = [_raw(item, header) for item, header in zip(data, headers, strict=True)]
        bodies: list[Any] = []
        for at, response in enumerate(self.engine.predict(requests)):
            if headers[at].get(DESCRIBE) == "True":
                bodies.append(self.engine.describe())
                continue
            context.set_response_status(response.status, response.phrase, at)
            context.set_response_content_type(at, response.content_type)
            bodies.append(response.body)
        return bodies

    def _load(self, context: Any) -> None:
        properties = context.system_properties
        options = torchrec_options.read_options(context.model_yaml_config)
        self.context = context
        self.manifest = context.manifest
        self.device = _device(options.device, properties.get("gpu_id"))
        predictor = loader.load(Path(properties["model_dir"]), options, self.device)
        self.model = predictor.module
        self.engine = engine.Engine(context.model_name, predictor, options)
        # A full collection looks at every object of torch's modules, some 0.2 s in which no request
        # is answered; what is loaded now stays.
        gc.collect()
        gc.freeze()


def _wait_until_read(output: int, longest: float) -> None:
    """Wait until the other end of a pipe has read it empty, and a moment for what it does then.

    Returns at once where `output` is no pipe.
    """
    if not stat.S_ISFIFO(os.fstat(output).st_mode):
        return
    end = time.monotonic() + longest
    while time.monotonic() < end and any(fcntl.ioctl(output, termios.FIONREAD, bytes(4))):
        time.sleep(0.01)
    time.sleep(WRITE_SECONDS)


def _device(wanted: str, gpu_id: int | None) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and (gpu_id is None or not torch.cuda.is_available())):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        message = "torchrec.device: received 'cuda', but this machine has no CUDA device"
        raise OptionError(message)
    device = torch.device("cuda", gpu_id or 0)
    torch.cuda.set_device(device)
    return device


def _lower_case(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items()}


def _raw(item: Mapping[str, Any], headers: Mapping[str, Any]) -> RawRequest:
    name = "body" if "body" in item else "data"
    if name in item:
        # TorchServe's own entry, unless the client sent a header of that name over it.
        own = headers.get(name)
        content_type = own.get("content-type", "") if isinstance(own, Mapping) else ""
    else:
        # TorchServe took a form apart, and the body's type is the request's own.
        content_type = headers.get("content-type", "")
    return RawRequest(
        body=_bytes(item.get(name, b"")),
        content_type=content_type.partition(";")[0].strip().lower(),
        accept=headers.get("accept", ""),
        qualname=_qualname(item, headers),
    )


def _qualname(item: Mapping[str, Any], headers: Mapping[str, Any]) -> str:
    """A parameter, else a header, else the path behind /predictions/NAME/VERSION/."""
    if headers.get(EXPLAIN) == "True":
        return EXPLAIN
    given = item.get(QUALNAME)
    if given is None:
        given = headers.get(QUALNAME_HEADER) or headers.get(URL_PATH) or FORWARD
    return _bytes(given).decode("utf-8", "replace")


def _bytes(value: str | bytes | bytearray) -> bytes | bytearray:
    return value.encode() if isinstance(value, str) else value
