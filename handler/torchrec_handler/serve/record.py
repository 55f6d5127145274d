"""Keeps some of the requests, as files that `torchrec-archiver build --samples` reads.

A file holds one JSON body a line, and is of one worker and one method: JSON formats stand there as
they came, any other as JSON columns.
"""

import contextlib
import logging
import os
import random
import socket
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs import content_encoding
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.codecs.codec import JSON_STARTS
from torchrec_handler.serve.request import RawRequest, Response

logger = logging.getLogger(__name__)

MOST_WAITING = 2**25
"""Bytes of bodies that wait to be written; what comes on top of them is not recorded."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACES = bytes.maketrans(b"\r\n", b"  ")
"""In JSON a line may only end between two values."""


class Recorder:
    """Takes requests in the thread that serves, and writes them in another one."""

    def __init__(self, name: str, predictor: Predictor, options: Options) -> None:
        """Record nothing yet.

        Args:
            name: what the files' names begin with: model and version.
            predictor: of the model. Methods that do not take its inputs are not recorded.
            options: how many, and where.
        """
        record = options.record
        self._rate = record.rate
        self._left = record.max_bytes
        self._folder = Path(record.folder or "")
        self._name = name
        qualnames = predictor.qualnames.items()
        self._methods = {name for name, method in qualnames if method.need_preproc}
        self._codecs = Codecs("", predictor.signature, options.limits)
        self._waiting: deque[RawRequest] = deque()
        self._waiting_bytes = 0

    def take(self, requests: Iterable[RawRequest], outcomes: Iterable[object]) -> None:
        """Choose some of the requests that were answered."""
        for raw, outcome in zip(requests, outcomes, strict=True):
            if (
                random.random() < self._rate  # noqa: S311  no secret
                and isinstance(outcome, Response)
                and raw.qualname in self._methods
                and self._waiting_bytes < MOST_WAITING
                and self._left > 0
            ):
                self._waiting_bytes += len(raw.body)
                self._waiting.append(raw)

    def write(self) -> None:
        """Append what was chosen to the files. A disk that fails ends the recording alone."""
        by_method: dict[str, list[bytes]] = {}
        for _ in range(len(self._waiting)):
            raw = self._waiting.popleft()
            by_method.setdefault(raw.qualname, []).append(self._line(raw))
        self._waiting_bytes = 0
        for qualname, lines in by_method.items():
            self._append(self.path(qualname), lines)

    def path(self, qualname: str) -> Path:
        """The file of a method."""
        parts = (self._name, qualname, socket.gethostname(), str(os.getpid()))
        return self._folder / (quote("-".join(parts), safe="") + ".jsonl")

    def _append(self, path: Path, lines: Iterable[bytes]) -> None:
        content = b""
        for line in lines:
            if len(line) > self._left:
                logger.warning("%s: torchrec.record.max_bytes are written; no more", path)
                self._left = 0
                break
            self._left -= len(line)
            content += line
        before: int | None = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path, "ab", opener=_for_its_owner) as file:
                before = file.tell()
                file.write(content)
        except OSError as error:
            logger.error("%s cannot be recorded to: %s; no more", path, error.strerror)  # noqa: TRY400
            self._left = 0
            if before is not None:
                # Half of a line would be no JSON.
                with contextlib.suppress(OSError):
                    os.truncate(path, before)

    def _line(self, raw: RawRequest) -> bytes:
        raw = content_encoding.decode(raw) if raw.content_encoding else raw
        body = bytes(raw.body)
        if body[0] in JSON_STARTS:
            return body.removeprefix(BYTE_ORDER_MARK).translate(SPACES) + b"\n"
        columns, _ = self._codecs.decode(raw)
        arrays = columns.arrays.items()
        document: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays}
        if columns.batch_size is not None:
            document["batch_size"] = columns.batch_size
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
