"""`torchrec-archiver inspect`: shows what an archive says of itself."""

import argparse
from pathlib import Path

from rich.console import Console

from torchrec_archiver.near import check_there
from torchrec_archiver.report.terminal import show
from torchrec_handler.archive.read import read_description, read_index
from torchrec_handler.errors import BuildError

HELP = "show what an archive or a delta says of itself"
EXAMPLES = """\
torchrec-archiver inspect model_store/shop.mar
torchrec-archiver inspect model_store/shop.mar --json | jq .signature
torchrec-archiver inspect model_store/shop.mar --html shop.html --time
torchrec-archiver inspect updates/shop/00000042.delta
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz, folder or .delta")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON document")
    forms.add_argument(
        "--html", metavar="FILE", help="write one page with pictures instead, which needs no other"
    )
    parser.add_argument(
        "--time",
        action="store_true",
        help="load the model, which runs the archive's code, and time its samples by stage",
    )


def run(options: argparse.Namespace) -> int:
    """Print an archive's description, or write it as a page and print the page's path.

    Raises:
        ArchiveError: see `read_description`.
        LoadError: with `--time`, the archive cannot be loaded or does not answer its samples.
        BuildError: the page cannot be written, or is asked of a delta.
        DeltaError: the delta is damaged.
    """
    archive = Path(options.archive)
    check_there(archive)
    if archive.suffix == ".delta":
        from torchrec_archiver.report.delta import show_delta  # noqa: PLC0415  as does numpy

        if options.html or options.time:
            message = "--html and --time are of archives; a delta has its head and its rows to show"
            raise BuildError(message)
        print(show_delta(archive, as_json=options.json))
        return 0
    if options.json:
        print(read_index(archive).dumps())
        return 0
    description = read_description(archive)
    times = None
    if options.time:
        from torchrec_archiver.report.times import take  # noqa: PLC0415  it imports torch

        times = take(archive, description)
    if not options.html:
        show(description, Console(), times)
        return 0
    from torchrec_archiver.report.page import write_page  # noqa: PLC0415  as does jinja2

    write_page(description, archive, Path(options.html), times)
    print(options.html)
    return 0
