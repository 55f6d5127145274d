"""`torchrec-archiver swap`: puts a new version in the place of the one that answers."""

import argparse
from pathlib import Path

from torchrec_archiver.near import check_there

HELP = "let a new version answer on a running server, under load"
EXAMPLES = """\
torchrec-archiver swap model_store/shop-2.0.mar
torchrec-archiver swap model_store/shop-2.0.mar --management-address http://127.0.0.1:8081
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument(
        "archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder in the server's model store"
    )
    parser.add_argument(
        "--management-address",
        default="http://127.0.0.1:8081",
        metavar="URL",
        help="as in the server's config.properties",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="of the new version to be ready, and of the old one to be idle",
    )


def run(options: argparse.Namespace) -> int:
    """Swap versions.

    Raises:
        BuildError: see `swap`.
    """
    from torchrec_archiver.swapping import swap  # noqa: PLC0415

    check_there(Path(options.archive))
    done = swap(Path(options.archive), options.management_address, options.timeout, print)
    print(f"done in {done.seconds:.1f} s")
    return 0
