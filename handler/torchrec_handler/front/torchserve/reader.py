"""Reads a worker's requests in a few system calls, in the place of TorchServe's own reader.

TorchServe takes a request apart with a system call or two for each of its lengths and texts, more
time than small requests take to answer. This reads what has arrived at once and cuts it up. The
format is that of ts/protocol/otf_message_handler.py, which is promised to nobody, so this is used
with the one version that it was checked against.

Bodies are not decoded, also where config.properties leaves decode_input_request on: the codecs do
that, within bounds, and refuse what `json.loads` lets pass, such as names given twice.
"""

import logging
import socket
import sys
from struct import Struct
from typing import Any
from weakref import WeakKeyDictionary

import ts
from ts.protocol import otf_message_handler

logger = logging.getLogger(__name__)

CHECKED_VERSION = "0.12.0"
BUFFER_BYTES = 1 << 18
"""Of a connection; about what a socket holds, and a batch of 64 small requests."""
LONGEST_BUFFERED = BUFFER_BYTES // 4
"""What is longer and has not arrived yet is received where it stays, not through the buffer."""
INT_BYTES = 4
END_OF_LIST = -1

_read_int = Struct("!i").unpack_from


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
            __name__,
            CHECKED_VERSION,
        )
        return
    # `retrieve_msg`, which a worker calls, and the reader of load messages go through these two.
    otf_message_handler._retrieve_buffer = _retrieve_buffer  # noqa: SLF001  there is no public hook
    otf_message_handler._retrieve_inference_msg = _retrieve_inference_msg  # noqa: SLF001
    logger.info("Requests are read by %s", __name__)


class SocketReader:
    """Keeps what a connection gave beyond what was asked for.

    For one connection and one thread at a time, as TorchServe reads in a worker, with
    `asyncCommunication` too. It is handed the connection in every call, since it must not keep
    alive what it is kept by.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def read(self, connection: socket.socket, size: int) -> bytearray:
        """Exactly `size` bytes, none for a size below 0, as TorchServe has it.

        Raises:
            SystemExit: the connection ended.
        """
        if size > LONGEST_BUFFERED and size > self._end - self._start:
            return self._read_long(connection, size)
        if size > self._end - self._start:
            self._fill(connection, size)
        start = self._start
        self._start = stop = start + max(size, 0)
        return self._buffer[start:stop]

    def read_requests(self, connection: socket.socket) -> list[dict[str, Any]]:
        """A batch, as TorchServe's `_retrieve_inference_msg` gives it, values not decoded.

        Raises:
            SystemExit: the connection ended.
        """
        item, field = self._read_item, self._read_field
        requests = []
        while (identity := item(connection)) is not None:
            headers = []
            while (name := item(connection)) is not None:
                headers.append({"name": name, "value": field(connection)})
            parameters = []
            while (name := item(connection)) is not None:
                parameters.append(
                    {
                        "name": name.decode(),
                        "contentType": field(connection).decode(),
                        "value": field(connection),
                    }
                )
            requests.append({"requestId": identity, "headers": headers, "parameters": parameters})
        return requests

    def _read_item(self, connection: socket.socket) -> bytearray | None:
        """A length and as many bytes; None at the end of a list."""
        start = self._start
        if self._end - start < INT_BYTES:
            self._fill(connection, INT_BYTES)
            start = self._start
        size: int = _read_int(self._buffer, start)[0]
        start += INT_BYTES
        stop = start + size
        if start <= stop <= self._end:
            self._start = stop
            return self._buffer[start:stop]
        self._start = start
        return None if size == END_OF_LIST else self.read(connection, size)

    def _read_field(self, connection: socket.socket) -> bytearray:
        """A length and as many bytes where no list can end."""
        value = self._read_item(connection)
        return bytearray() if value is None else value

    def _read_long(self, connection: socket.socket, size: int) -> bytearray:
        value = bytearray(size)
        at = self._end - self._start
        value[:at] = self._view[self._start : self._end]
        self._start = self._end = 0
        rest = memoryview(value)
        while at < size:
            at += _receive(connection, rest[at:])
        return value

    def _fill(self, connection: socket.socket, size: int) -> None:
        """Receive what has arrived until the buffer holds `size` bytes."""
        left = self._end - self._start
        self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left
        while self._end < size:
            self._end += _receive(connection, self._view[self._end :])


_readers: WeakKeyDictionary[socket.socket, SocketReader] = WeakKeyDictionary()
"""A worker has one connection; bytes of one must never answer for another."""


def _reader(connection: socket.socket) -> SocketReader:
    reader = _readers.get(connection)
    if reader is None:
        reader = _readers[connection] = SocketReader()
    return reader


def _retrieve_buffer(connection: socket.socket, length: int) -> bytearray:
    return _reader(connection).read(connection, length)


def _retrieve_inference_msg(connection: socket.socket) -> list[dict[str, Any]]:
    return _reader(connection).read_requests(connection)


def _receive(connection: socket.socket, target: memoryview) -> int:
    received = connection.recv_into(target)
    if not received:
        # What TorchServe's own reader does.
        logger.info("Frontend disconnected.")
        sys.exit(0)
    return received
