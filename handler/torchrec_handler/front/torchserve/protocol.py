"""Puts `reader` and `writer` in the place of TorchServe's own functions.

TorchServe's format is promised to nobody, so this is done with the one version that they were
checked against.
"""

import logging
import socket
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import ts
from ts import service
from ts.context import RequestProcessor
from ts.protocol import otf_message_handler

from torchrec_handler.front.torchserve import reader, writer
from torchrec_handler.front.torchserve.reader import Request, SocketReader

logger = logging.getLogger(__name__)

CHECKED_VERSION = "0.12.0"


def install() -> None:
    """Read all later messages of this process, where that is known to be right.

    To be called while a worker loads its model: the load message was read to its last byte, and
    TorchServe's own reader, which ran until now, receives nothing ahead. Calling it again changes
    nothing, so a model may be loaded twice.
    """
    if ts.__version__ != CHECKED_VERSION:
        logger.warning(
            "Requests are read by TorchServe %s itself: %s was checked with %s only",
            ts.__version__,
            reader.__name__,
            CHECKED_VERSION,
        )
        return
    # `retrieve_msg`, which a worker calls, and the reader of load messages go through these two.
    otf_message_handler._retrieve_buffer = _retrieve_buffer  # noqa: SLF001  there is no public hook
    otf_message_handler._retrieve_inference_msg = _retrieve_inference_msg  # noqa: SLF001
    # What `Service.predict` makes of a message, and of the handler's answers.
    service.Service.retrieve_data_for_inference = staticmethod(_retrieve_data)
    service.create_predict_response = writer.create_predict_response
    logger.info("Requests are read by %s", reader.__name__)


_readers: WeakKeyDictionary[socket.socket, SocketReader] = WeakKeyDictionary()
"""A worker has one connection; bytes of one must never answer for another."""


def _reader(connection: socket.socket) -> SocketReader:
    found = _readers.get(connection)
    if found is None:
        found = _readers[connection] = SocketReader()
    return found


def _retrieve_buffer(connection: socket.socket, length: int) -> bytearray:
    return _reader(connection).read(connection, length)


def _retrieve_inference_msg(connection: socket.socket) -> list[Request]:
    return _reader(connection).read_requests(connection)


def _retrieve_data(
    batch: Sequence[Request],
) -> tuple[list[Any], list[dict[str, bytearray]], dict[int, str]]:
    """Headers, parameters and ids, as TorchServe takes them from what its own reader gives."""
    if not batch:
        return [], [], {}
    identities, heads, parameters = zip(*batch, strict=True)
    processors = [RequestProcessor(head) for head in heads]
    return processors, list(parameters), dict(enumerate(identities))
