"""`torchrec-archiver predict`: answers requests in this process, as the server would."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchrec_archiver.near import near_path
from torchrec_handler.errors import InvalidRequest, RequestError

HELP = "answer request files without a server"
EXAMPLES = """\
torchrec-archiver predict model_store/shop.mar request.json
torchrec-archiver predict model_store/shop.mar requests.jsonl > answers.jsonl
echo '{"instances": [{"user": 7}]}' | torchrec-archiver predict model_store/shop.mar -
torchrec-archiver predict model_store/shop.mar --qualname user_embedding user.json
torchrec-archiver predict model_store/shop.mar request.pb --accept application/json
"""

STDIN = "-"
LINES = ".jsonl"
JSON = "application/json"
CONTENT_TYPES = {".json": JSON, LINES: JSON, ".pb": "application/x-protobuf"}
"""End of a file's name -> content type; of any other the bytes tell, as of gRPC's."""


class _Asked(NamedTuple):
    where: str
    body: bytes
    content_type: str


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument(
        "requests",
        nargs="+",
        metavar="REQUEST",
        help=f"a file with a request's body, {STDIN} for standard input; of a {LINES} each line is "
        "a body, and answered by a line",
    )
    parser.add_argument(
        "--qualname", default="forward", metavar="METHOD", help="the method that answers"
    )
    parser.add_argument(
        "--content-type",
        metavar="TYPE",
        help="of the requests; by default told by a file's name, else by its bytes",
    )
    parser.add_argument("--accept", metavar="TYPE", help="of the answers; by default the request's")


def run(options: argparse.Namespace) -> int:
    """Print each answer's body.

    Raises:
        LoadError: the archive cannot be loaded.
        RequestError: of the first request that is refused, with its place in front.
    """
    asked = list(_read(options.requests, options.content_type))
    from torchrec_archiver.answer import answering  # noqa: PLC0415  it imports torch
    from torchrec_handler.serve.request import RawRequest  # noqa: PLC0415  it imports numpy

    with answering(Path(options.archive)) as archive:
        for where, body, content_type in asked:
            raw = RawRequest(
                body=body,
                content_type=content_type,
                accept=options.accept or "",
                qualname=options.qualname,
            )
            (outcome,) = archive.engine.predict([raw])
            if isinstance(outcome, RequestError):
                message = f"{where}: {outcome.sentence}"
                raise type(outcome)(message, hint=outcome.hint)
            sys.stdout.buffer.write(outcome.body)
            if outcome.content_type == JSON:
                sys.stdout.buffer.write(b"\n")
            sys.stdout.buffer.flush()
    return 0


def _read(paths: list[str], content_type: str | None) -> Iterator[_Asked]:
    for name in paths:
        try:
            body = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        except OSError as error:
            message = f"request: {name} cannot be read: {error.strerror}"
            raise InvalidRequest(message, hint=near_path(Path(name))) from error
        suffix = Path(name).suffix
        kind = content_type or CONTENT_TYPES.get(suffix, "")
        where = "standard input" if name == STDIN else name
        if suffix != LINES:
            yield _Asked(where, body, kind)
            continue
        for number, line in enumerate(body.splitlines(), 1):
            if line.strip():
                yield _Asked(f"{where}, line {number}", line, kind)
