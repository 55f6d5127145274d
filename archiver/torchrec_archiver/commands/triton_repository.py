"""`torchrec-archiver triton-repository`: archives as Triton serves them."""

import argparse
from pathlib import Path

from torchrec_archiver.command_line import add_keys, keys_of
from torchrec_archiver.commands.serve import number

HELP = "write a Triton model repository of archives"

EXAMPLES = """\
torchrec-archiver triton-repository model_store/shop.mar --output repository
tritonserver --model-repository repository --model-control-mode poll --disable-auto-complete-config
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument(
        "archives",
        metavar="ARCHIVE",
        nargs="+",
        help="a .mar or .tar.gz, which is unpacked, or a folder, which is linked",
    )
    parser.add_argument("--output", metavar="FOLDER", required=True, help="the repository")
    parser.add_argument(
        "--instances", type=number, metavar="N", help="of each model; as its archive says"
    )
    parser.add_argument("--force", action="store_true", help="replace models that are there")
    add_keys(parser)


def run(options: argparse.Namespace) -> int:
    """Write it.

    Raises:
        ArchiveError, ServeError: see `write_repository`.
    """
    from torchrec_archiver.serving.repository import write_repository  # noqa: PLC0415  numpy

    written = write_repository(
        [Path(path) for path in options.archives],
        Path(options.output),
        instances=options.instances,
        keys=keys_of(options),
        force=options.force,
    )
    for model, place in written:
        print(f"Wrote {model} as {place}")
    print(f"Serve it: torchrec-archiver serve --server triton, or {EXAMPLES.splitlines()[1]}")
    return 0
