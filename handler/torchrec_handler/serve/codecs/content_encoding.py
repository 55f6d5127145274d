"""A compressed body to the body: HTTP's `Content-Encoding`, of bounded size when inflated."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import zstandard

from torchrec_handler.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.request import RawRequest

MOST_BYTES = 2**26
"""Of an inflated body; what `max_request_size` in config.properties allows one to be as it is."""

MOST_TIMES, SPARE_BYTES = 200, 2**20
"""A body may inflate to so many times its bytes, and so much more: requests, whose ids differ, do
not come near it, and a few hundred bytes do not hold a worker."""

MOST_ENCODINGS = 4
"""One after another; a client applies one, and a proxy on the way perhaps a second."""

MOST_MEMBERS = 1_024
"""What is compressed in pieces is a member a piece; each costs some microseconds, even empty."""

SLICE_BYTES = 256
"""Read at once. It bounds what is inflated beyond MOST_BYTES: a slice of zstd's densest blocks
holds 8 MB, of deflate's 0.3 MB."""

ZSTD_WINDOW_BYTES = 2**23
"""The most that RFC 9659 lets an encoding of HTTP need."""

FORMATS: Mapping[str, str] = {
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
    "zstd": "zstd",
    "identity": "identity",
}
"""Name in the header -> encoding."""


def decode(raw: RawRequest) -> RawRequest:
    """Undo a request's content encodings, the last one first.

    Raises:
        UnsupportedMediaType: an encoding that is not known, or too many.
        InvalidRequest: the body is not what its encoding says, or ends too early.
        RequestTooLarge: the body inflates to more than MOST_BYTES, or MOST_TIMES its own.
    """
    names = [name.strip().lower() for name in raw.content_encoding.split(",") if name.strip()]
    if len(names) > MOST_ENCODINGS:
        raise UnsupportedMediaType(
            received=f"{len(names)} content encodings", expected=f"at most {MOST_ENCODINGS}"
        )
    for name in names:
        if name not in FORMATS:
            raise UnsupportedMediaType(
                received=f"content encoding {shortened(repr(name))}",
                expected=f"one of {', '.join(sorted(set(FORMATS.values())))}",
            )
    body = raw.body
    most = min(MOST_BYTES, MOST_TIMES * len(body) + SPARE_BYTES)
    for name in reversed(names):
        if name != "identity":
            body = _inflate(FORMATS[name], body, most)
    return raw._replace(body=body, content_encoding="")


def _inflate(name: str, body: bytes | bytearray, most: int) -> bytearray:
    new_member = _new_member(name, body)
    member = new_member()
    members = 1
    inflated = bytearray()
    source = memoryview(body)
    try:
        for start in range(0, len(source), SLICE_BYTES):
            rest = bytes(source[start : start + SLICE_BYTES])
            while rest:
                if member.eof:
                    member = new_member()
                    members += 1
                inflated += member.decompress(rest)
                rest = member.unused_data
            if len(inflated) > most:
                said, hint = f"inflates to more than {most} bytes", "send fewer rows"
                if most < MOST_BYTES:
                    said += f", {MOST_TIMES} times its own and {SPARE_BYTES}"
                    hint = "send it less compressed"
                raise RequestTooLarge(where="body", said=said, hint=hint)
            if members > MOST_MEMBERS:
                raise InvalidRequest(
                    said=f"{name} in more than {MOST_MEMBERS} pieces",
                    where="body",
                    hint="compress it as one",
                )
    except (zlib.error, zstandard.ZstdError) as error:
        raise InvalidRequest(
            said=f"not valid {name} ({str(error).rpartition(': ')[2]})", where="body"
        ) from None
    if not member.eof:
        raise InvalidRequest(said=f"not valid {name} (ends too early)", where="body")
    return inflated


def _new_member(name: str, body: bytes | bytearray) -> Callable[[], Any]:
    if name == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj
    if name == "gzip":
        return lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)
    # `deflate` is a zlib stream by HTTP's text, and the bare one from many clients. A zlib stream
    # begins with a method of 8 and a check sum.
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return lambda: zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
