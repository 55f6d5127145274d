"""Writes a batch's answers at once, in the place of TorchServe's own writer.

Most of what stands before an answer's body is alike in all answers, so it is written once and
remembered. The format is that of ts/protocol/otf_message_handler.py.
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

from ts.protocol import otf_message_handler

_int = Struct("!i").pack

END = _int(-1)

REMEMBERED = 256
"""Heads of answers, of which clients see a few."""

torchserves_own = otf_message_handler.create_predict_response


def create_predict_response(
    ret: Sequence[Any] | None,
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: Any = None,
) -> bytes | bytearray | None:
    """Write answers that are bytes; TorchServe itself writes what else there may be.

    Args:
        ret: a body for each request, None where the batch failed.
        req_id_map: position -> the request's id.
        message: of the batch, for logs.
        code: of the batch.
        context: has status and headers of each answer, None where the batch failed.
    """
    if (
        ret is None
        or context is None
        or context.stopping_criteria
        or set(map(type, ret)) != {bytes}
        or os.getenv("LOCAL_RANK", "0") != "0"
    ):
        return torchserves_own(ret, req_id_map, message, code, context)  # type: ignore[no-any-return]
    parts = [_int(code), _text(message)]
    answers = zip(req_id_map.values(), context.request_processor, ret, strict=True)
    for identity, processor, body in answers:
        head = _head(
            processor.get_response_status_code(),
            processor.get_response_status_phrase(),
            tuple(processor.get_response_headers().items()),
        )
        parts += (_text(identity), head, _int(len(body)), body)
    parts.append(END)
    return b"".join(parts)


@lru_cache(REMEMBERED)
def _head(code: int, phrase: str | None, headers: Sequence[tuple[str, str]]) -> bytes:
    content_type = dict(headers).get("content-type", "")
    texts = [part for header in headers for part in header]
    return b"".join(
        [
            _text(content_type),
            _int(code),
            _text(phrase or ""),
            _int(len(headers)),
            *map(_text, texts),
        ]
    )


def _text(text: str) -> bytes:
    content = text.encode()
    return _int(len(content)) + content
