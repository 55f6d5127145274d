"""Bodies that clients compress, as HTTP's `Content-Encoding` says."""

import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from tests.support.one_request import BODIES, COLUMNS, codecs, content_type
from torchrec_handler.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType
from torchrec_handler.serve.codecs.content_encoding import MOST_BYTES, decode
from torchrec_handler.serve.request import RawRequest

PLAIN = json.dumps(COLUMNS).encode() * 3
LONG = "x" * 10_000
BEGUN = LONG[:79]


def bare_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def streamed_zstd(body: bytes, window_log: int = 20) -> bytes:
    """Without the size of what is compressed in its head."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(body) + compressor.flush()


def inflated(body: bytes, encoding: str) -> bytes:
    raw = decode(RawRequest(body=body, content_encoding=encoding))
    assert raw.content_encoding == ""
    return bytes(raw.body)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(PLAIN)),
        ("x-gzip", gzip.compress(PLAIN)),
        (" GZip ", gzip.compress(PLAIN, 0)),
        ("gzip", gzip.compress(PLAIN[:100]) + gzip.compress(b"") + gzip.compress(PLAIN[100:])),
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", zlib.compress(PLAIN, 1, wbits=9)),
        ("deflate", bare_deflate(PLAIN)),
        ("zstd", zstandard.compress(PLAIN)),
        ("zstd", streamed_zstd(PLAIN)),
        ("zstd", zstandard.compress(PLAIN[:9]) + zstandard.compress(PLAIN[9:])),
        ("identity", PLAIN),
        (",", PLAIN),
        ("deflate, gzip", gzip.compress(zlib.compress(PLAIN))),
        ("zstd,identity,gzip", gzip.compress(zstandard.compress(PLAIN))),
    ],
)
def test_are_inflated(encoding: str, body: bytes) -> None:
    assert inflated(body, encoding) == PLAIN


@pytest.mark.parametrize("name", sorted(BODIES))
def test_may_hold_any_format(name: str) -> None:
    for kind in ("", content_type(name)):
        raw = RawRequest(
            body=gzip.compress(BODIES[name]), content_type=kind, content_encoding="gzip"
        )
        columns, _ = codecs().decode(raw)
        assert {key: array.tolist() for key, array in columns.arrays.items()} == COLUMNS


def test_may_hold_keyword_arguments() -> None:
    body = zstandard.compress(b'{"text": "a"}')
    arguments, _ = codecs().decode_arguments(RawRequest(body=body, content_encoding="zstd"))
    assert arguments == {"text": "a"}


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("br", "received content encoding 'br', expected one of deflate, gzip, identity, zstd"),
        (
            "gzip, br",
            "received content encoding 'br', expected one of deflate, gzip, identity, zstd",
        ),
        (
            LONG,
            f"received content encoding '{BEGUN}…, expected one of deflate, gzip, identity, zstd",
        ),
        (
            "gzip, gzip, gzip, gzip, gzip",
            "received 5 content encodings, expected at most 4",
        ),
    ],
)
def test_of_unknown_encodings_are_refused(encoding: str, message: str) -> None:
    with pytest.raises(UnsupportedMediaType) as raised:
        inflated(gzip.compress(PLAIN), encoding)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("gzip", PLAIN, "body: not valid gzip (incorrect header check)"),
        ("gzip", b"", "body: not valid gzip (ends too early)"),
        ("gzip", gzip.compress(PLAIN)[:-1], "body: not valid gzip (ends too early)"),
        (
            "gzip",
            gzip.compress(PLAIN)[:-8] + bytes(8),
            "body: not valid gzip (incorrect data check)",
        ),
        (
            "gzip",
            gzip.compress(PLAIN) + b"more",
            "body: not valid gzip (incorrect header check)",
        ),
        (
            "gzip",
            gzip.compress(b"") * 1_025,
            "body: gzip in more than 1024 pieces; compress it as one",
        ),
        ("deflate", b"\x07", "body: not valid deflate (invalid block type)"),
        ("deflate", zlib.compress(PLAIN)[:-1], "body: not valid deflate (ends too early)"),
        ("zstd", PLAIN, "body: not valid zstd (Unknown frame descriptor)"),
        ("zstd", zstandard.compress(PLAIN)[:-1], "body: not valid zstd (ends too early)"),
        (
            "zstd",
            streamed_zstd(PLAIN, window_log=24),
            "body: not valid zstd (Frame requires too much memory for decoding)",
        ),
    ],
)
def test_that_are_damaged_are_refused(encoding: str, body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        inflated(body, encoding)
    assert str(raised.value) == message


@pytest.mark.parametrize("encodings", [["gzip"], ["zstd"], ["zstd", "gzip"]])
def test_a_few_bytes_that_inflate_to_many_are_refused_at_once(encodings: list[str]) -> None:
    """They would hold a worker longer than they cost who sends them."""
    bomb = bytes(MOST_BYTES - 1)
    for name in encodings:
        bomb = gzip.compress(bomb) if name == "gzip" else streamed_zstd(bomb)
    start = time.thread_time()
    with pytest.raises(RequestTooLarge) as raised:
        inflated(bomb, ",".join(encodings))
    assert time.thread_time() - start < 0.1
    most = 200 * len(bomb) + 2**20
    assert str(raised.value) == (
        f"body: inflates to more than {most} bytes, 200 times its own and 1048576; send it less "
        "compressed"
    )


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("deflate", bare_deflate), ("zstd", streamed_zstd)],
)
def test_that_inflate_to_too_much_are_refused_where_the_limit_is_passed(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    random = np.random.default_rng(0)
    pieces = (random.bytes(2**12) + bytes(2**16) for _ in range(2 * MOST_BYTES // 2**16))
    bomb = compress(b"".join(pieces))
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge) as raised:
            inflated(bomb, encoding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(raised.value) == "body: inflates to more than 67108864 bytes; send fewer rows"
    assert peak < 1.4 * MOST_BYTES
