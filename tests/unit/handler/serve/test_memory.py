"""What a body costs: bounded by its bytes whatever it holds, and told before objects are made."""

import ctypes
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.answered import ask as answered
from tests.support.exact import INPUTS, SPARSE, Exact, predictor
from tests.support.one_request import JSON
from torchrec_handler.archive.format import Hashed
from torchrec_handler.front.torchserve.answers import HttpAnswer
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest

MB = 2**20
SIZE = 20 * MB
SECONDS = 2.0
"""Some tenths on a machine of one's own."""

STARTS = {
    "column": (b'{"id_list_features.values":[', b"]}"),
    "dense": (b'{"float_features":[', b"]}"),
    "instances": (b'{"instances":[', b"]}"),
    "row": (b'{"instances":[{"movie":[', b"]}]}"),
    "arguments": (b'{"x":[', b"]}"),
    "tensor": (
        b'{"inputs":[{"name":"id_list_features.values","datatype":"INT8","shape":[1],"data":[',
        b"]}]}",
    ),
}
ELEMENTS = (b"1", b"[]", b"[1],[2,3]", b"[[[1]]]", b'{"a":1}', b"123456")


class WithArguments(Exact):
    def count(self, **arguments: Any) -> dict[str, Any]:
        return {"count": torch.tensor([len(arguments)])}


@pytest.fixture(scope="module")
def engine() -> Engine:
    methods = {"forward": True, "count": False}
    module = WithArguments(INPUTS, "dict_of_tensor")
    return Engine("ranking", predictor(module, *INPUTS, methods=methods), Options())


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def ask(engine: Engine, body: bytearray, qualname: str) -> tuple[HttpAnswer, int, float]:
    """The answer, how far memory grew beyond the body, and seconds."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = memory("VmRSS")
    start = time.thread_time()
    (response,) = answered(engine, [RawRequest(body=body, content_type=JSON, qualname=qualname)])
    return response, memory("VmHWM") - before, time.thread_time() - start


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("where", STARTS)
def test_of_many_elements(engine: Engine, where: str, element: bytes) -> None:
    start, end = STARTS[where]
    count = (SIZE - len(start) - len(end)) // (len(element) + 1)
    body = bytearray(start + (element + b",") * (count - 1) + element + end)
    qualname = "count" if where == "arguments" else "forward"
    response, grown, seconds = ask(engine, body, qualname)
    assert grown < 7 * SIZE + 64 * MB
    assert seconds < SECONDS
    assert response.status in (400, 413)
    assert len(response.body) < 1_000


@pytest.mark.parametrize("where", ["column", "row", "tensor"])
def test_of_many_strings(where: str) -> None:
    start, end = STARTS[where]
    start = start.replace(b'"INT8"', b'"BYTES"')
    hash_ = Hashed(function="xxh64", rows=10, seed=0)
    hashed = replace(SPARSE, hashed=(hash_, hash_, hash_))
    engine = Engine("ranking", predictor(Exact((hashed,), "dict_of_tensor"), hashed), Options())
    element = b'"%020d"'
    body = start + b",".join(element % number for number in range(SIZE // 23)) + end
    response, grown, seconds = ask(engine, bytearray(body), "forward")
    assert grown < 7 * SIZE + 64 * MB
    assert seconds < SECONDS
    assert response.status in (200, 400)


@pytest.mark.parametrize("qualname", ["forward", "count"])
def test_of_many_names(engine: Engine, qualname: str) -> None:
    body = bytearray(b"{" + b",".join(b'"%d":1' % number for number in range(1_000_000)) + b"}")
    response, grown, seconds = ask(engine, body, qualname)
    assert response.status == 400
    assert grown < 7 * len(body) + 64 * MB
    assert seconds < SECONDS


def test_a_message_never_repeats_a_long_name(engine: Engine) -> None:
    name = b"x" * SIZE
    for body in (b'{"%s":1}', b'{"instances":[{}],"%s":1}', b'{"inputs":[{"name":"%s"}]}'):
        response, _, _ = ask(engine, bytearray(body % name), "forward")
        assert response.status == 400
        assert len(response.body) < 1_000
    response, _, _ = ask(engine, bytearray(b"{}"), name.decode())
    assert response.status == 404
    assert len(response.body) < 1_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"x": 1, "x": 2}', "body: x is given twice"),
        (b'{"x": {"y": 1, "z": 2, "y": 3}}', "body: y is given twice"),
        (b'{"x": [1, [{"y": 1}, {"y": {"z": 1, "z": 1}}]]}', "body: z is given twice"),
        (b'{"x": {"y": 1, "\\u0079": 1}}', "body: y is given twice"),
        (b'{"x":' * 900 + b'{"y": 1, "y": 1}' + b"}" * 900, "body: "),
        (b'{"x":' * 1000 + b'{"y": 1, "y": 1}' + b"}" * 1000, "body: "),
    ],
)
def test_an_argument_given_twice(engine: Engine, body: bytes, message: str) -> None:
    response, _, _ = ask(engine, bytearray(body), "count")
    assert response.status == 400
    assert message in response.body.decode()


def test_names_given_once_in_each_of_many_objects(engine: Engine) -> None:
    body = b'{"x": [' + b'{"a":1},' * 100_000 + b'{"a":1}]}'
    response, _, seconds = ask(engine, bytearray(body), "count")
    assert response.status == 200
    assert seconds < SECONDS


@pytest.mark.parametrize("ids", ["[%d]", "[%d,1000,1001]", "%d"])
def test_as_many_rows_as_a_request_may_have(engine: Engine, ids: str) -> None:
    """Objects of all of them at once would take more."""
    rows = ",".join(
        f'{{"age":0.5,"price":2,"hour":1,"image":[1,2,3,4],"title":[1,2,3,4],'
        f'"user":{ids % (row % 50)},"movie":{ids % 7},"genres":{ids % 8}}}'
        for row in range(16_384)
    )
    body = bytearray(f'{{"instances":[{rows}]}}', "ascii")
    response, grown, _ = ask(engine, body, "forward")
    assert response.status in (200, 400)
    assert grown < 7 * len(body) + 64 * MB


SHAPES = (b"1000", b"[1000000]", b'{"abcd":1000}', b'"abcde"')


@pytest.mark.parametrize("element", SHAPES)
def test_of_a_long_shape(engine: Engine, element: bytes) -> None:
    start = b'{"inputs":[{"name":"float_features","datatype":"FP32","data":[1],"shape":[['
    count = SIZE // (len(element) + 1)
    body = bytearray(start + (element + b",") * (count - 1) + element + b"]]}]}")
    response, grown, seconds = ask(engine, body, "forward")
    assert response.status in (400, 413)
    assert grown < 7 * len(body) + 64 * MB
    assert seconds < SECONDS


@pytest.mark.parametrize(
    ("rows", "width", "has_own"),
    [(16_384, 25_000, False), (512, 200_000, True), (16_384, 200_000, True), (255, 200_000, True)],
)
def test_of_a_long_list_that_rows_share(
    engine: Engine,
    rows: int,
    width: int,
    has_own: bool,  # noqa: FBT001
) -> None:
    """Each row getting its own would take a thousand times the body."""
    own = b'{"image":[1,2,3,4]},' if has_own else b""
    shared = b'{"age":1,"price":1,"hour":1,"title":[1,2,3,4],"image":[' + b"0," * width + b"1]}"
    body = bytearray(
        b'{"instances":[' + own + b"{}," * (rows - 1) + b'{}],"shared":' + shared + b"}"
    )
    response, grown, seconds = ask(engine, body, "forward")
    assert response.status in (400, 413)
    assert grown < 7 * len(body) + 64 * MB
    assert seconds < SECONDS
