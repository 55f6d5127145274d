"""What is recorded is what `torchrec-archiver build --samples` reads."""

import gzip
import json
import logging
import resource
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.exact import INPUTS, predictor
from tests.support.one_request import BODIES, SIGNATURE, content_type, raw
from torchrec_archiver.samples import read_requests
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.options import Options, Record
from torchrec_handler.serve.record import Recorder
from torchrec_handler.serve.request import RawRequest, Response, Sparse, ValidRequest

METHODS = {"forward": True, "a/b": True, "add": False}
ANSWER = Response(content_type="application/json", body=b"{}")


def recorder(folder: Path, rate: float = 1.0, max_bytes: int = 10_000) -> Recorder:
    options = Options(record=Record(rate=rate, folder=str(folder), max_bytes=max_bytes))
    served = predictor(torch.nn.Identity(), *INPUTS, methods=METHODS)
    return Recorder("ranking-1.0", served, options)


def record(to: Recorder, *requests: RawRequest) -> None:
    to.take(requests, [ANSWER] * len(requests))
    to.write()


def plain(request: ValidRequest) -> Mapping[str, Any]:
    """Arrays as lists, which may be compared."""
    return {
        name: [None if part is None else part.tolist() for part in found]
        if isinstance(found, Sparse)
        else found.tolist()
        for name, found in request.inputs.items()
    }


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_every_format_is_read_as_a_sample(tmp_path: Path, name: str, encoding: str) -> None:
    body = gzip.compress(BODIES[name]) if encoding else BODIES[name]
    sent = raw(body, content_type(name))._replace(content_encoding=encoding)
    to = recorder(tmp_path)
    record(to, sent, sent)
    record(to, sent)
    found = read_requests(to.path("forward"), SIGNATURE, Options())
    (tmp_path / "sent").write_bytes(BODIES["json columns"])
    (expected,) = read_requests(tmp_path / "sent", SIGNATURE, Options())
    assert list(map(plain, found)) == [plain(expected)] * 3


def test_json_of_several_lines_is_one_line(tmp_path: Path) -> None:
    to = recorder(tmp_path)
    document = {"a": ["b\nc", 1.5]}
    record(to, raw(b"\xef\xbb\xbf" + json.dumps(document, indent=2).encode() + b"\r\n"))
    (line,) = to.path("forward").read_bytes().splitlines()
    assert json.loads(line) == document


def test_each_method_has_a_file_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    to = recorder(tmp_path / "new" / "folder")
    record(to, raw(b"{}"), raw(b"{ }")._replace(qualname="a/b"))
    assert to.path("forward").read_bytes() == b"{}\n"
    assert to.path("a/b").read_bytes() == b"{ }\n"
    assert to.path("a/b").name.startswith("ranking-1.0-a%2Fb-")
    assert stat.S_IMODE(to.path("a/b").stat().st_mode) == 0o600
    assert stat.S_IMODE(to.path("a/b").parent.stat().st_mode) == 0o700


def test_what_was_not_answered_or_takes_no_inputs_is_left_out(tmp_path: Path) -> None:
    to = recorder(tmp_path)
    requests = [raw(b"{"), raw(b"{}"), raw(b"[1]")._replace(qualname="add")]
    to.take(requests, [InvalidRequest("bad"), ANSWER, ANSWER])
    to.write()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"{}\n"]


def test_the_rate_is_the_share_of_requests(tmp_path: Path) -> None:
    to = recorder(tmp_path, rate=0.25)
    record(to, *[raw(b"{}")] * 3_000)
    assert 600 < len(to.path("forward").read_bytes().splitlines()) < 900


def test_no_more_than_max_bytes_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    to = recorder(tmp_path, max_bytes=7)
    for _ in range(3):
        record(to, raw(b"{}"), raw(b"{}"))
    assert to.path("forward").read_bytes() == b"{}\n{}\n"
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (
            logging.WARNING,
            f"{to.path('forward')}: torchrec.record.max_bytes are written; no more",
        )
    ]


def test_of_a_disk_that_is_full_whole_lines_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of this process stands for it: a part of what is written is, and then nothing."""
    to = recorder(tmp_path, max_bytes=100_000)
    record(to, raw(b"{}"))
    line = b"{" + b" " * 20_000 + b"}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        record(to, raw(line))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    record(to, raw(b"{}"))
    assert to.path("forward").read_bytes() == b"{}\n"
    assert caplog.messages == [
        f"{to.path('forward')} cannot be recorded to: File too large; no more"
    ]


def test_a_folder_that_cannot_be_written_to_ends_the_recording_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    to = recorder(tmp_path / "file" / "folder")
    for _ in range(2):
        record(to, raw(b"{}"))
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (
            logging.ERROR,
            f"{to.path('forward')} cannot be recorded to: Not a directory; no more",
        )
    ]
