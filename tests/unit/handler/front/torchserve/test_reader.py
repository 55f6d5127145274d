"""Requests read in few system calls, beside TorchServe's own reader of the same bytes."""

import importlib.util
import logging
import os
import signal
import socket
import threading
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from struct import pack
from typing import Any

import pytest
import ts
from hypothesis import given
from hypothesis import strategies as st
from ts import service
from ts.protocol import otf_message_handler
from ts.service import Service

from tests.support.exact import examples
from torchrec_handler.front.torchserve import protocol
from torchrec_handler.front.torchserve import reader as socket_reader
from torchrec_handler.front.torchserve.reader import BUFFER_BYTES, LONGEST_BUFFERED, SocketReader

Field = bytes
Request = tuple[Field, list[tuple[Field, Field]], list[tuple[Field, Field, Field]]]
"""Its id, its headers, and its parameters: name, content type, value."""

END = pack("!i", -1)
DECODING = "TS_DECODE_INPUT_REQUEST"
"""What config.properties' `decode_input_request` becomes in a worker."""


def torchserves_own() -> Any:
    """TorchServe's module, loaded once more, so that nothing is installed in it."""
    spec = importlib.util.find_spec("ts.protocol.otf_message_handler")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OWN = torchserves_own()
OWN_SERVICE = Service.retrieve_data_for_inference


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """Install as a worker does, beside TorchServe's own reader that decodes nothing either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DECODING, "false")
        keep(patch)
        protocol.install()
        yield


def keep(patch: pytest.MonkeyPatch) -> None:
    """Take back later what is installed in TorchServe's modules."""
    for name in ("_retrieve_buffer", "_retrieve_inference_msg"):
        patch.setattr(otf_message_handler, name, getattr(otf_message_handler, name))
    patch.setattr(Service, "retrieve_data_for_inference", staticmethod(OWN_SERVICE))
    patch.setattr(service, "create_predict_response", service.create_predict_response)


def field(value: bytes) -> bytes:
    return pack("!i", len(value)) + value


def predict(requests: Sequence[Request]) -> bytes:
    """A message as the frontend's ModelRequestEncoder writes it."""
    parts = [b"I"]
    for identity, headers, parameters in requests:
        parts += [field(identity), *(field(part) for header in headers for part in header), END]
        parts += [*(field(part) for parameter in parameters for part in parameter), END]
    return b"".join([*parts, END])


def load_message(gpu: int) -> bytes:
    parts = [field(b"model"), field(b"/a/path"), pack("!i", 64), field(b"handler.py")]
    return b"".join([b"L", *parts, pack("!i", gpu), field(b""), pack("!?", gpu > 0)])


def small(count: int) -> list[Request]:
    """What a usual client sends."""
    headers = [
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"host", b"127.0.0.1:8080"),
        (b"user-agent", b"curl/8.5"),
    ]
    return [
        (b"%036d" % at, headers, [(b"body", b"application/json", b'{"a": [%d]}' % at)])
        for at in range(count)
    ]


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The frontend's end and the worker's."""
    frontend, worker = socket.socketpair()
    with closing(frontend), closing(worker):
        yield frontend, worker


@contextmanager
def sending(pieces: Sequence[bytes]) -> Iterator[socket.socket]:
    """The worker's end of a connection on which a thread sends pieces and then closes it."""
    with connected() as (frontend, worker):

        def send() -> None:
            # It need not be read to its end.
            with suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    frontend.sendall(piece)
                frontend.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield worker
        finally:
            worker.close()
            thread.join()


def received(module: Any, pieces: Sequence[bytes]) -> list[Any]:
    """All messages of a connection, and the status with which its end ends a worker."""
    messages: list[Any] = []
    with sending(pieces) as worker:
        try:
            while True:
                messages.append(taken(module, *module.retrieve_msg(worker)))
        except SystemExit as end:
            messages.append(end.code)
    return messages


def taken(module: Any, command: bytes, message: Any) -> tuple[bytes, Any]:
    """A message, of requests what a worker's `Service` takes from it."""
    if command != b"I":
        return command, message
    retrieve = OWN_SERVICE if module is OWN else Service.retrieve_data_for_inference
    headers, inputs, ids = retrieve(message)
    return command, ([header.get_request_properties() for header in headers], inputs, ids)


def typed(value: Any) -> Any:
    """A message with the type of every value in it, in order."""
    if isinstance(value, dict):
        return {name: typed(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [typed(part) for part in value]
    return type(value).__name__, value


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:stop] for start, stop in pairwise(edges)]


SIZES = st.sampled_from(
    [
        0,
        *(at + by for at in (LONGEST_BUFFERED, BUFFER_BYTES) for by in (-9, -5, -4, -1, 0, 1, 4)),
        3 * BUFFER_BYTES,
    ]
)
TEXTS = st.text(max_size=20).map(str.encode)
VALUES = st.binary(max_size=300) | SIZES.map(lambda size: b"\x07" * size)
REQUESTS = st.tuples(
    TEXTS,
    st.lists(st.tuples(TEXTS, TEXTS), max_size=8),
    st.lists(
        st.tuples(TEXTS, st.sampled_from([b"", b"application/json", b"text/plain"]), VALUES),
        max_size=3,
    ),
)
MESSAGES = st.lists(REQUESTS, max_size=6).map(predict) | st.integers(-1, 2).map(load_message)


@contextmanager
def buffers_of(size: int, longest: int) -> Iterator[None]:
    """Connections that are new get buffers of that size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket_reader, "BUFFER_BYTES", size)
        patch.setattr(socket_reader, "LONGEST_BUFFERED", longest)
        yield


@examples(0.5)
@given(
    st.lists(MESSAGES, max_size=5),
    st.lists(st.integers(0, 1 << 20), max_size=30),
    st.sampled_from([(BUFFER_BYTES, LONGEST_BUFFERED), (256, 64), (40, 39), (8, 4)]),
)
def test_any_messages_in_any_pieces_are_read_as_torchserve_reads_them(
    messages: list[bytes], places: list[int], sizes: tuple[int, int]
) -> None:
    """Values, their types and the end of the worker are the same; a load may come at any time."""
    pieces = cut(b"".join(messages), places)
    with buffers_of(*sizes):
        got = typed(received(otf_message_handler, pieces))
    assert got == typed(received(OWN, pieces))
    assert len(got) == len(messages) + 1


@pytest.mark.parametrize("longest", [4, 50, 400])
def test_a_message_may_cross_the_buffers_end_anywhere(longest: int) -> None:
    """All of it has arrived, and the buffer's end comes to lie at each of its bytes."""
    stream = predict(small(3))
    expected = typed(received(OWN, [stream]))
    for size in range(max(longest, 8), len(stream) + 2):
        with buffers_of(size, longest), connected() as (frontend, worker):
            frontend.sendall(stream)
            frontend.shutdown(socket.SHUT_WR)
            got = taken(otf_message_handler, *otf_message_handler.retrieve_msg(worker))
            assert typed([got, 0]) == expected


def test_it_ends_as_torchserves_reader_wherever_a_connection_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a message or between two, with status 0 and TorchServe's own words."""
    caplog.set_level(logging.INFO)
    stream = load_message(0) + predict(small(2)) + predict([])
    for length in range(len(stream) + 1):
        caplog.clear()
        got = received(otf_message_handler, [stream[:length]])
        assert got[-1] == 0
        assert got == received(OWN, [stream[:length]])
        assert caplog.messages.count("Frontend disconnected.") == 2


@pytest.mark.parametrize(
    "stream",
    [
        b"X",
        b"I" + pack("!i", -7) + END + END + END,
        b"I" + field(b"id") + field(b"name") + END + END + END + END,
        b"I" + field(b"id") + END + field(b"body") + END + pack("!i", -2) + END + END,
        b"I" + field(b"id") + END + field(b"\xff") + field(b"") + field(b"") + END + END,
    ],
    ids=["command", "a negative length", "a header of no value", "no type", "not UTF-8"],
)
def test_what_is_no_message_fails_as_with_torchserves_reader(stream: bytes) -> None:
    def outcome(module: Any) -> Any:
        try:
            return typed(received(module, [stream]))
        except (UnicodeDecodeError, ValueError) as error:
            return repr(error)

    assert outcome(otf_message_handler) == outcome(OWN)


class Counting(socket.socket):
    """Counts the system calls that read from it."""

    calls = 0

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        self.calls += 1
        return super().recv_into(*arguments, **named)

    def recv(self, *arguments: Any, **named: Any) -> bytes:
        self.calls += 1
        return super().recv(*arguments, **named)


def calls(module: Any, stream: bytes) -> int:
    """System calls that read one message, which has arrived."""
    with connected() as (frontend, worker), Counting(fileno=worker.detach()) as counting:
        frontend.sendall(stream)
        module.retrieve_msg(counting)
        return counting.calls


@pytest.mark.parametrize("count", [1, 64])
def test_a_batch_of_small_requests_takes_one_system_call(count: int) -> None:
    stream = predict(small(count))
    assert calls(otf_message_handler, stream) == 1
    assert calls(OWN, stream) > 25 * count


def test_a_large_body_is_held_once_and_given_back() -> None:
    body = bytes(64 << 20)
    stream = [predict([(b"id", [], [(b"body", b"", body)]), *small(1)])]
    reader = SocketReader()
    with sending(stream) as worker:
        tracemalloc.start()
        try:
            assert reader.read(worker, 1) == b"I"
            requests = reader.read_requests(worker)
            held, peak = tracemalloc.get_traced_memory()
            assert requests[0].parameters["body"] == body
            assert requests[1].identity == f"{0:036}"
            del requests
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    beside = 4 * BUFFER_BYTES  # whatever else runs in this process
    assert len(body) <= held <= peak < len(body) + beside
    assert left < beside


def test_a_value_is_the_callers_own() -> None:
    """It stays as it is when later messages go through the buffer."""
    with connected() as (frontend, worker):
        frontend.sendall(predict(small(1)))
        _, first = otf_message_handler.retrieve_msg(worker)
        frontend.sendall(predict([(b"\x7f" * 300, [], [(b"\x01" * 20, b"", b"\xfe" * 300)])]))
        _, second = otf_message_handler.retrieve_msg(worker)
    assert first[0].parameters["body"] == b'{"a": [0]}'
    first[0].parameters["body"][:] = b""
    assert second[0].parameters["\1" * 20] == b"\xfe" * 300


def test_connections_are_not_mixed_and_their_buffers_go_with_them() -> None:
    """Each is left with a message ahead in its buffer while the other is read."""
    with connected() as (one, first), connected() as (two, second):
        for frontend, identity in ((one, b"one"), (two, b"two")):
            frontend.sendall(
                b"".join(predict([(identity + b"%d" % at, [], [])]) for at in range(3))
            )
        got = [
            otf_message_handler.retrieve_msg(worker)[1][0].identity
            for worker in (first, second) * 3
        ]
        assert got == ["one0", "two0", "one1", "two1", "one2", "two2"]
        buffers = [weakref.ref(protocol._readers[worker]) for worker in (first, second)]
    del first, second
    assert [buffer() for buffer in buffers] == [None, None]


def test_what_arrived_before_installing_again_is_kept() -> None:
    """As when the load command comes again: the buffer may hold messages already."""
    with connected() as (frontend, worker):
        frontend.sendall(load_message(1) + predict(small(1)))
        assert otf_message_handler.retrieve_msg(worker)[0] == b"L"
        protocol.install()
        assert otf_message_handler.retrieve_msg(worker)[1][0].identity == f"{0:036}"


def test_what_torchserves_reader_left_unread_is_read_after_installing() -> None:
    """A worker reads its load message with TorchServe's reader, and what follows with this."""
    with connected() as (frontend, worker):
        frontend.sendall(load_message(1) + predict(small(1)))
        assert OWN.retrieve_msg(worker)[0] == b"L"
        assert otf_message_handler.retrieve_msg(worker)[1][0].identity == f"{0:036}"


def test_a_signal_in_the_middle_of_a_read_changes_nothing() -> None:
    """Short values wait in the buffer, long ones where they stay."""
    body = os.urandom(3 * BUFFER_BYTES)
    stream = predict([*small(1), (b"id", [], [(b"body", b"", body)]), *small(1)])
    pieces = cut(stream, range(50, len(stream), len(stream) // 20))
    main = threading.get_ident()
    handled = []

    def disturb(frontend: socket.socket) -> None:
        for piece in pieces:
            signal.pthread_kill(main, signal.SIGUSR1)
            frontend.sendall(piece)

    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
    try:
        with connected() as (frontend, worker):
            thread = threading.Thread(target=disturb, args=(frontend,))
            thread.start()
            _, requests = otf_message_handler.retrieve_msg(worker)
            thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled
    assert len(requests) == 3
    assert requests[1].parameters["body"] == body


def test_a_describe_request_reaches_the_handler_as_before() -> None:
    """GET /models/NAME?customized=true is a predict with a header and no parameter."""
    stream = predict([(b"id", [(b"describe", b"True")], []), *small(1)])

    (_, (headers, inputs, _)), _ = received(otf_message_handler, [stream])
    assert received(otf_message_handler, [stream]) == received(OWN, [stream])
    assert (headers[0]["describe"], inputs[0]) == ("True", {})


def test_another_version_of_torchserve_keeps_its_own_reader(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ts, "__version__", "0.12.1")
    said = (
        "Requests are read by TorchServe 0.12.1 itself: torchrec_handler.front.torchserve.reader "
        "was checked with 0.12.0 only"
    )
    assert said_and_read_by(monkeypatch, caplog) == ([said], "TorchServe")


@pytest.mark.parametrize("value", [None, "true", "false"])
def test_bodies_are_not_decoded_whatever_the_setting(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where config.properties is TorchServe's own, which decodes JSON and text."""
    if value is None:
        monkeypatch.delenv(DECODING)
    else:
        monkeypatch.setenv(DECODING, value)
    parameters = [(b"body", b"application/json", b'{"a": 1, "a": 2}'), (b"t", b"text/plain", b"1")]
    (_, (_, inputs, _)), _ = received(otf_message_handler, [predict([(b"id", [], parameters)])])
    assert inputs == [{"body": b'{"a": 1, "a": 2}', "t": b"1"}]


def test_it_says_that_it_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = ["Requests are read by torchrec_handler.front.torchserve.reader"]
    assert said_and_read_by(monkeypatch, caplog) == (said, "ours")


def said_and_read_by(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> tuple[list[str], str]:
    """What installing into an untouched module logs, and whose reader is there then."""
    module = torchserves_own()
    keep(monkeypatch)
    monkeypatch.setattr(protocol, "otf_message_handler", module)
    caplog.set_level(logging.INFO)
    protocol.install()
    count = calls(module, predict(small(1)))
    said = [record.getMessage() for record in caplog.records if record.name == protocol.__name__]
    return said, "ours" if count == 1 else "TorchServe"
