"""Load on a server, from one thread: requests that are ready as bytes, over connections kept open.

Cheap enough to stand beside the server on its own cores: some ten microseconds a request.
"""

import selectors
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from torchrec_archiver.serving.running import said
from torchrec_handler.errors import ServeError

CHUNK = 2**18
LONGEST_ANSWER_SECONDS = 60
END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"content-length:"
OK = b"HTTP/1.1 200"
CLOSED = b" closed a connection without an answer"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, ready to be sent."""

    content: bytes
    """Head and body."""
    rows: int
    """B"""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one load gave."""

    connections: int
    rows: float
    """Of a request, on average."""
    rows_per_second: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    """Answers other than 200, and connections that the server closed without one."""
    first_error: str
    """What the first of them said."""


def request(url: str, path: str, headers: Mapping[str, str], body: bytes, rows: int) -> Request:
    """Write a request of HTTP."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return Request(content="\r\n".join(lines).encode() + body, rows=rows)


def load(url: str, requests: Sequence[Request], *, connections: int, seconds: float) -> Figures:
    """Send requests in turn over connections, each connection one at a time.

    Args:
        url: of the server.
        requests: what is sent.
        connections: how many.
        seconds: after which no more is sent; what was sent is awaited.

    Raises:
        ServeError: the server takes no connection, gives no answer, or none but errors.
    """
    with selectors.DefaultSelector() as selector:
        opened = [_Connection(url, selector) for _ in range(connections)]
        try:
            return _load(opened, selector, requests, seconds)
        except (OSError, ValueError) as error:
            message = f"{url}: gave no answer under the load of {connections} connections: {error}"
            raise ServeError(message) from error
        finally:
            for connection in opened:
                connection.socket.close()


def _load(
    opened: Sequence["_Connection"],
    selector: selectors.BaseSelector,
    requests: Sequence[Request],
    seconds: float,
) -> Figures:
    latencies: list[float] = []
    errors: list[bytes] = []
    rows = sent = 0
    began = time.perf_counter()
    end = began + seconds
    for connection in opened:
        connection.send(requests[sent % len(requests)])
        sent += 1
    waiting = len(opened)
    while waiting:
        events = selector.select(LONGEST_ANSWER_SECONDS)
        if not events:
            message = f"none for {LONGEST_ANSWER_SECONDS} s"
            raise ValueError(message)
        for key, mask in events:
            asked: _Connection = key.data
            if mask & selectors.EVENT_WRITE:
                asked.flush()
            if not mask & selectors.EVENT_READ or (answer := asked.receive()) is None:
                continue
            now = time.perf_counter()
            if answer.startswith(OK):
                latencies.append(now - asked.sent_at)
                rows += asked.rows
            else:
                errors.append(answer)
                asked.reopen()
            if now < end:
                asked.send(requests[sent % len(requests)])
                sent += 1
            else:
                waiting -= 1
    took = time.perf_counter() - began
    first_error = _said(errors[0]) if errors else ""
    if not latencies:
        raise ValueError(first_error)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return Figures(
        connections=len(opened),
        rows=sum(one.rows for one in requests) / len(requests),
        rows_per_second=rows / took,
        requests_per_second=len(latencies) / took,
        p50_ms=float(p50),
        p99_ms=float(p99),
        errors=len(errors),
        first_error=first_error,
    )


@dataclass
class _Connection:
    """One connection, on which at most one request is under way."""

    url: str
    selector: selectors.BaseSelector
    sent_at: float = 0.0
    rows: int = 0
    _out: deque[memoryview] = field(default_factory=deque)
    _in: bytearray = field(default_factory=bytearray)
    _size: int = 0
    """Of the whole answer; 0 until its head is there."""

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        self.socket = socket.create_connection((place.hostname or "", place.port or 80), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.selector.register(self.socket, selectors.EVENT_READ, self)

    def reopen(self) -> None:
        """Take a new connection: TorchServe closes the one of an error."""
        self.selector.unregister(self.socket)
        self.socket.close()
        self._out.clear()
        self._in.clear()
        self._size = 0
        self.__post_init__()

    def send(self, request: Request) -> None:
        """Send as much as the socket takes, and the rest once it takes more."""
        self.sent_at, self.rows = time.perf_counter(), request.rows
        sent = self._send(memoryview(request.content))
        if sent < len(request.content):
            self._out.append(memoryview(request.content)[sent:])
            self.selector.modify(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def flush(self) -> None:
        """Send more of what is left."""
        rest = self._out.popleft()
        sent = self._send(rest)
        if sent < len(rest):
            self._out.appendleft(rest[sent:])
        else:
            self.selector.modify(self.socket, selectors.EVENT_READ, self)

    def receive(self) -> bytes | None:
        """The answer, without a body where it is 200; None while it is not whole.

        Raises:
            ValueError: the answer is not HTTP with a length.
        """
        try:
            piece = self.socket.recv(CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            piece = b""
        if not piece:
            return CLOSED
        self._in += piece
        if not self._size:
            head = self._in.find(END_OF_HEAD)
            if head < 0:
                return None
            self._size = head + len(END_OF_HEAD) + _length(bytes(self._in[:head]).lower())
        if len(self._in) < self._size:
            return None
        answer = OK if self._in.startswith(OK) else bytes(self._in)
        self._in.clear()
        self._size = 0
        return answer

    def _send(self, content: memoryview) -> int:
        try:
            return self.socket.send(content)
        except BlockingIOError:
            return 0
        except ConnectionError:  # what it answered, if anything, is still to be read
            return len(content)


def _length(head: bytes) -> int:
    at = head.find(LENGTH)
    if at < 0:
        message = "an answer has no Content-Length"
        raise ValueError(message)
    return int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0])


def _said(answer: bytes) -> str:
    """What an answer that is no prediction says, with its status."""
    head, _, body = answer.partition(END_OF_HEAD)
    return f"{head.split(b' ', 2)[1].decode()}: {said(body)}" if body else answer.decode().strip()
