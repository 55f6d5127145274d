"""The one class that TorchServe sees; only this room imports `ts`."""

import fcntl
import json
import logging
import os
import stat
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.request_envelope.base import BaseEnvelope

from torchrec_handler import options as torchrec_options
from torchrec_handler.archive.trust import trusted_keys
from torchrec_handler.errors import LoadError, Unusable
from torchrec_handler.front.follow import follow_beside
from torchrec_handler.front.torchserve import model_infer, protocol
from torchrec_handler.front.torchserve.answers import http_answer
from torchrec_handler.front.torchserve.books import Books
from torchrec_handler.front.torchserve.head import BODIES, CONTENT_TYPE, EXPLAIN, QUALNAME, Head
from torchrec_handler.load import loader
from torchrec_handler.load.process import become_worker, keep_what_is_loaded, worker_device
from torchrec_handler.ranks import meet
from torchrec_handler.serve import engine
from torchrec_handler.serve.observe import Totals
from torchrec_handler.serve.record import Recorder
from torchrec_handler.serve.request import RawRequest, Response
from torchrec_handler.updates.served import serve_updates

logger = logging.getLogger(__name__)

LAST_OF_STREAM = ("ts_stream_next", "false")
"""That an answer is the only one of its request. TorchServe's gRPC, which gives a handler no header
to know `StreamPredictions` by, dies with the worker where an answer to that has no header."""
SEQUENCE = "X-TorchRec-Sequence"
"""Which generation an answer is of, where `torchrec.updates.folder` is given."""
DESCRIBE = "describe"
"""TorchServe's own header of GET /models/NAME?customized=true, see `_is_describe`."""

STDOUT = 1
LONGEST_READ_SECONDS = 2.0
"""How long a failed worker waits for the frontend to read its last lines."""
WRITE_SECONDS = 0.2
"""How long the frontend is given to log lines that it has read."""


class TorchRecHandler(BaseHandler):
    """Loads an archive once, then answers batches of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.follows = False
        # Of config.properties' service_envelope, which TorchServe makes after this. Its envelopes
        # join the instances of a batch, or take its first request only, and make lists of what
        # errors hold; the codecs read and write what they promise, each request by itself.
        BaseEnvelope.handle = _handle_as_it_came

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
        protocol.install()
        self.initialized = True

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch.

        Args:
            data: per request its body under `body` (HTTP) or `data` (gRPC and forms), and those of
                the query's parameters that TorchServe hands on.
            context: TorchServe's, for headers in, status and headers out.
        """
        if self.follows:  # the rank that answers got them too
            return [b""] * len(data)
        processors = context.request_processor
        heads = [Head.of(processor.get_request_properties()) for processor in processors]
        if len(data) == 1 and _is_describe(data[0], heads[0]):
            return [{**self.engine.describe(), "served": self.books.served()}]
        requests = list(map(_raw, data, heads))
        try:
            outcomes = self.engine.predict(requests)
        except Unusable as error:
            _end(error)
        self.books.enter(requests, outcomes, context.request_ids or {})
        sequence = self.engine.sequence
        bodies: list[Any] = []
        for processor, head, outcome in zip(processors, heads, outcomes, strict=True):
            if head.is_call:
                bodies.append(model_infer.answer(outcome, self.engine.model_name, self.version))
                continue
            response = http_answer(outcome)
            if sequence is not None and type(outcome) is Response:
                processor.add_response_property(SEQUENCE, str(sequence))
            if not head.is_http:
                processor.add_response_property(*LAST_OF_STREAM)
            processor.report_status(response.status, response.phrase)
            processor.add_response_property(CONTENT_TYPE, response.content_type)
            bodies.append(response.body)
        return bodies

    def _load(self, context: Any) -> None:
        properties = context.system_properties
        options = torchrec_options.read_options(context.model_yaml_config)
        self.context = context
        self.manifest = context.manifest
        self.version = str(context.manifest["model"].get("modelVersion", ""))
        self.device = worker_device(options.device, properties.get("gpu_id"))
        become_worker(options, self.device)
        folder = Path(properties["model_dir"])
        # All ranks of its machine get every batch of TorchServe's, which sends the first's answer.
        ranks = meet(leads=os.environ.get("LOCAL_RANK", "0") == "0")
        keys = trusted_keys()
        if ranks and not ranks.is_leader:
            self.follows = True
            logging.getLogger().setLevel(logging.WARNING)  # TorchServe tells of every batch
            follow_beside(loader.load_follower(folder, options, self.device, ranks, keys), _end)
            return
        predictor = loader.load(folder, options, self.device, keys, ranks)
        updates = serve_updates(options, context.model_name, folder, predictor, keys)
        self.model = predictor.module
        totals = Totals()
        self.engine = engine.Engine(context.model_name, predictor, options, totals, updates)
        named = f"{context.model_name}-{self.version}"
        recorder = Recorder(named, predictor, options) if options.record.rate else None
        self.books = Books(self.engine, totals, recorder, self.version, context.metrics)
        if predictor.leader:
            predictor.leader.when_lost(_end)
        keep_what_is_loaded()


def _end(error: Unusable) -> NoReturn:
    """End the worker, so that TorchServe starts another.

    In the middle of a batch, whose requests are then answered 500: TorchServe drops without an
    answer what it is about to hand to a worker that ends between two.
    """
    logger.error("%s. This worker ends, and TorchServe starts another", error)
    _wait_until_read(STDOUT, LONGEST_READ_SECONDS)
    # What Python does at an end may wait for a device, or for ranks, that do not answer.
    os._exit(1)


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


def _handle_as_it_came(envelope: Any, data: Sequence[Mapping[str, Any]], context: Any) -> Any:
    return envelope._handle_fn(data, context)  # noqa: SLF001  what BaseEnvelope itself calls


def _is_describe(item: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Whether the management port asks what is served.

    TorchServe says so with a header, which any client can send too. It gives a client's request
    at least one parameter, its body, unless that is a form, and a form has a content type; gRPC
    has no headers. So what has neither parameter nor content type comes from TorchServe itself.
    """
    return (
        not item
        and headers.get(DESCRIBE) == "True"
        and all(name.lower() != CONTENT_TYPE for name in headers)
    )


def _raw(item: Mapping[str, Any], head: Head) -> RawRequest:
    body, data = BODIES
    name = body if body in item else data
    content = _bytes(item.get(name, b""))
    return RawRequest(
        body=model_infer.with_texts(content) if head.is_call else content,
        content_type=head.content_types[name],
        content_encoding=head.content_encoding,
        accept=head.accept,
        qualname=_qualname(item, head),
    )


def _qualname(item: Mapping[str, Any], head: Head) -> str:
    """A parameter, else a header, else the path behind /predictions/NAME/VERSION/."""
    if head.is_explain:
        return EXPLAIN
    given = item.get(QUALNAME)
    return head.qualname if given is None else _bytes(given).decode("utf-8", "replace")


def _bytes(value: Any) -> bytes | bytearray:
    """A parameter's bytes, of which TorchServe's own reader may have made text or parsed JSON."""
    if isinstance(value, bytes | bytearray):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")
