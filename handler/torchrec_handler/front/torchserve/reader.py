"""Reads a worker's requests in a few system calls, in the place of TorchServe's own reader.

TorchServe takes a request apart with a system call or two for each of its lengths and texts, more
time than small requests take to answer. This reads what has arrived at once and cuts it up, and
takes heads that it knows for what they were before. The format is that of
ts/protocol/otf_message_handler.py.

Bodies are not decoded, also where config.properties leaves decode_input_request on: the codecs do
that, within bounds, and refuse what `json.loads` lets pass, such as names given twice.
"""

import logging
import socket
import sys
from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from torchrec_handler.front.torchserve.head import CONTENT_TYPE, Head

logger = logging.getLogger(__name__)

BUFFER_BYTES = 1 << 18
"""Of a connection; about what a socket holds, and a batch of 64 small requests."""
LONGEST_BUFFERED = BUFFER_BYTES // 4
"""What is longer and has not arrived yet is received where it stays, not through the buffer."""
REMEMBERED = 256
"""Heads of requests: a client sends the same ones again and again."""
LONGEST_REMEMBERED = 4_096
"""In bytes."""
INT_BYTES = 4
END_OF_LIST = -1

_read_int = Struct("!i").unpack_from


class Request(NamedTuple):
    """What TorchServe's own `Service` makes of a request."""

    identity: str
    head: Head
    parameters: dict[str, bytearray]
    """Name -> value, as it came."""


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
        self._known: set[bytes] = set()
        """What stood before values of requests, of which the next one is likely to be."""
        self._usual = 0
        """How long the last one was."""

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

    def read_requests(self, connection: socket.socket) -> list[Request]:
        """A batch, values not decoded.

        Raises:
            SystemExit: the connection ended.
        """
        item, read_names = self._read_item, self._read_names
        requests = []
        while (identity := item(connection)) is not None:
            names, has_value = read_names(connection, in_headers=True)
            values = []
            while has_value:
                values.append(item(connection) or bytearray())
                more, has_value = read_names(connection, in_headers=False)
                names += more
            read = _remembered if len(names) <= LONGEST_REMEMBERED else _take_apart
            head, parameters = read(names)
            named = dict(zip(parameters, values, strict=True))
            requests.append(Request(identity.decode(), head, named))
        return requests

    def _read_names(self, connection: socket.socket, *, in_headers: bool) -> tuple[bytes, bool]:
        """All that stands before a parameter's value or the end of a request, and which it is."""
        start = self._start
        if in_headers and start + self._usual <= self._end:
            names = bytes(self._view[start : start + self._usual])
            if names in self._known:
                self._start += self._usual
                return names, True
        while (
            found := _end_of_names(self._buffer, start, self._end, in_headers=in_headers)
        ) is None:
            self._fill(connection, self._end - start + 1)
            start = self._start
        self._start, has_value = found
        names = bytes(self._view[start : found[0]])
        if in_headers and has_value and len(names) <= LONGEST_REMEMBERED:
            if len(self._known) == REMEMBERED:
                self._known.clear()
            self._known.add(names)
            self._usual = len(names)
        return names, has_value

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
        kept = self._buffer[self._start : self._end]
        if not size <= len(self._buffer) <= BUFFER_BYTES:
            # Names are read as a whole, however long they are.
            self._buffer = bytearray(BUFFER_BYTES if size <= BUFFER_BYTES else 2 * size)
            self._view = memoryview(self._buffer)
        self._buffer[:left] = kept
        self._start, self._end = 0, left
        while self._end < size:
            self._end += _receive(connection, self._view[self._end :])


def _end_of_names(
    buffer: bytearray, at: int, end: int, *, in_headers: bool
) -> tuple[int, bool] | None:
    """Where the next parameter's value begins, or where the request ends.

    Args:
        buffer: holds the request.
        at: where headers begin, or what stands behind a parameter's value.
        end: of what has arrived.
        in_headers: which of both.

    Returns:
        The place, and whether there is a value; None where it has not arrived.
    """
    while at + INT_BYTES <= end:
        (size,) = _read_int(buffer, at)
        at += INT_BYTES
        if size == END_OF_LIST:
            if not in_headers:
                return at, False
            in_headers = False
            continue
        if size > 0:
            at += size
        if at + INT_BYTES > end:
            return None
        (size,) = _read_int(buffer, at)
        at += INT_BYTES
        if size > 0:
            at += size
        if not in_headers:
            return (at, True) if at <= end else None
    return None


def _take_apart(names: bytes) -> tuple[Head, list[str]]:
    """What stands in a request but for its id and its values: the head, and parameters' names."""
    fields = _fields(names)
    headers = dict(_pairs(fields))
    parameters = list(_pairs(fields))
    types = {name: {CONTENT_TYPE: content_type} for name, content_type in parameters}
    return Head({**types, **headers}), [name for name, _ in parameters]


_remembered = lru_cache(REMEMBERED)(_take_apart)


def _pairs(fields: Iterator[bytes | None]) -> Iterator[tuple[str, str]]:
    """A list of names and values, to its end."""
    while (name := next(fields)) is not None:
        yield name.decode(), (next(fields) or b"").decode()


def _fields(content: bytes) -> Iterator[bytes | None]:
    """One length and as many bytes behind another; None for the end of a list."""
    at = 0
    while at < len(content):
        size: int = _read_int(content, at)[0]
        at += INT_BYTES
        yield None if size == END_OF_LIST else content[at : at + size]
        at += max(size, 0)


def _receive(connection: socket.socket, target: memoryview) -> int:
    received = connection.recv_into(target)
    if not received:
        # What TorchServe's own reader does.
        logger.info("Frontend disconnected.")
        sys.exit(0)
    return received
