"""`torchrec-archiver bench`: load on a served archive, made of its own recorded samples."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from torchrec_archiver.command_line import above_zero
from torchrec_archiver.commands.serve import add_server, number, stoppable
from torchrec_archiver.near import near_path
from torchrec_archiver.serving import JSON, PROTOBUF
from torchrec_handler.errors import ServeError

if TYPE_CHECKING:
    from torchrec_archiver.serving.asking import Target
    from torchrec_archiver.serving.load import Figures, Request

HELP = "load a served archive: rows a second, p50, p99"

EXAMPLES = """\
torchrec-archiver bench model_store/shop.mar --picture bench.svg
torchrec-archiver bench model_store/shop.mar --connections 4 --requests requests.jsonl
"""

WARM_UP_SECONDS = 3.0
"""At most: Java compiles meanwhile what runs often."""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument(
        "--seconds", type=above_zero, default=10.0, metavar="S", help="of each load; 10"
    )
    parser.add_argument(
        "--connections",
        type=_numbers,
        default=[1, 16, 64],
        metavar="N[,N]",
        help="each sends one request at a time; 1,16,64",
    )
    parser.add_argument(
        "--rows",
        type=_numbers,
        default=[1, 100, 1000],
        metavar="N[,N]",
        help="of a request, out of the archive's recorded samples; 1,100,1000",
    )
    parser.add_argument(
        "--content-type",
        choices=(JSON, PROTOBUF),
        default=JSON,
        help="of the requests: JSON columns, or TorchRec's message",
    )
    parser.add_argument(
        "--requests",
        metavar="FILE",
        help="requests in the place of those, one JSON body a line",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="a server that serves the archive already, such as http://127.0.0.1:8080",
    )
    add_server(parser)
    parser.add_argument("--picture", metavar="FILE", help="where to draw an SVG picture")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Load a server, and print what it gave.

    Raises:
        ArchiveError: see `running`.
        BuildError: a line of --requests is no request.
        SelfTestError: an answer is not as it was when the archive was built.
        ServeError: see `running`; or there is no answer, or --picture cannot be written.
    """
    from torchrec_archiver.serving.load import load  # noqa: PLC0415  it imports numpy

    if options.picture:
        _check_folder(Path(options.picture))
    figures: list[Figures] = []
    with stoppable(), _served(options) as target:
        sizes = _requests(options, target)
        _progress("Warming up …")
        most = max(options.connections)
        load(target.url, sizes[0], connections=most, seconds=min(WARM_UP_SECONDS, options.seconds))
        for requests in sizes:
            for connections in options.connections:
                _progress(f"{requests[0].rows:,} rows a request, {connections} connections …")
                given = {"connections": connections, "seconds": options.seconds}
                figures.append(load(target.url, requests, **given))
        model = target.model
    how = f"{options.content_type}, {options.seconds:g} s each"
    if options.picture:
        _draw(Path(options.picture), str(model), how, figures)
    if options.json:
        document = {
            "model": model.name,
            "version": model.version,
            "content_type": options.content_type,
            "seconds": options.seconds,
            "loads": [asdict(one) for one in figures],
        }
        print(json.dumps(document, indent=2))
    else:
        _show(f"{model}, {how}", figures)
    return 0


@contextmanager
def _served(options: argparse.Namespace) -> Iterator["Target"]:
    """Where the archive is served, by a server of its own or by one that runs."""
    from torchrec_archiver.serving.archive import open_all  # noqa: PLC0415  as in `run`
    from torchrec_archiver.serving.asking import Target  # noqa: PLC0415
    from torchrec_archiver.serving.running import running  # noqa: PLC0415
    from torchrec_archiver.serving.session import temporary  # noqa: PLC0415
    from torchrec_archiver.serving.settings import free_ports  # noqa: PLC0415
    from torchrec_handler.archive.trust import trusted_keys  # noqa: PLC0415

    archive, folder = Path(options.archive), options.folder and Path(options.folder)
    if options.server:
        with temporary(folder) as temp:
            model = open_all([archive], temp / "archives")[0]
            url = options.server.rstrip("/")
            yield Target(model=model, url=url, path=f"/predictions/{model.name}")
        return
    _progress(f"Starting TorchServe with {archive} …")
    with running(
        [archive],
        ports=free_ports(),
        workers=options.workers,
        folder=folder,
        keys=trusted_keys(),
        seconds=options.startup_timeout,
    ) as server:
        one = server.asked[0]
        yield Target(model=one.model, url=server.url, path=one.path, headers=server.headers)


def _requests(options: argparse.Namespace, target: "Target") -> list[list["Request"]]:
    """The requests of each size, out of samples that are answered as they were recorded."""
    from torchrec_archiver.serving import asking  # noqa: PLC0415  as in `run`

    if options.requests:
        return [asking.of_file(target, Path(options.requests))]
    asking.check_samples(target)
    return [asking.of_samples(target, rows, options.content_type) for rows in options.rows]


def _show(title: str, figures: Sequence["Figures"]) -> None:
    table = Table(title=title, title_justify="left")
    names = ("rows", "connections", "rows/s", "requests/s", "p50 ms", "p99 ms", "errors")
    for name in names:
        table.add_column(name, justify="right")
    for number_of, one in enumerate(figures):
        is_last = number_of + 1 < len(figures) and figures[number_of + 1].rows != one.rows
        table.add_row(
            f"{one.rows:,.10g}",
            str(one.connections),
            f"{one.rows_per_second:,.0f}",
            f"{one.requests_per_second:,.0f}",
            f"{one.p50_ms:,.2f}",
            f"{one.p99_ms:,.2f}",
            str(one.errors),
            end_section=is_last,
        )
    console = Console()
    console.print(table)
    for said in dict.fromkeys(one.first_error for one in figures if one.errors):
        console.print(f"Of the errors: {said}", markup=False, highlight=False, soft_wrap=True)


def _check_folder(picture: Path) -> None:
    """Say before the load, which takes minutes, that its picture has no place."""
    folder = picture.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        message = f"--picture: {picture} cannot be written: {folder} is no folder to write into"
        raise ServeError(message, hint=near_path(folder))


def _draw(path: Path, title: str, how: str, figures: Sequence["Figures"]) -> None:
    from torchrec_archiver.serving.picture import draw  # noqa: PLC0415  as in `run`

    try:
        path.write_text(draw(title, how, figures), encoding="utf-8")
    except OSError as error:
        message = f"--picture: {path} cannot be written: {error.strerror}"
        raise ServeError(message) from error


def _progress(said: str) -> None:
    """Tell those who watch, beside what is printed for use."""
    if sys.stderr.isatty():
        print(said, file=sys.stderr, flush=True)


def _numbers(text: str) -> list[int]:
    return [number(part.strip()) for part in text.split(",")]
