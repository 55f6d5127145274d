"""`torchrec-archiver admit`: checks all of an archive and puts it into a model store."""

import argparse
from pathlib import Path

from torchrec_archiver.command_line import add_invalid_rows, add_keys, keys_of

HELP = "check all of an archive, run none of it, and put it into a model store"
EXAMPLES = """\
torchrec-archiver admit incoming/shop.mar --into model_store --trusted-keys release.pub
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument("--into", required=True, metavar="FOLDER", help="the model store")
    add_keys(parser)
    add_invalid_rows(parser)
    parser.add_argument(
        "-f", "--force", action="store_true", help="replace this version, or what has its name"
    )


def run(options: argparse.Namespace) -> int:
    """Admit an archive, and print where it is.

    Raises:
        ArchiveError, BuildError, LoadError: see `admit`.
    """
    from torchrec_archiver.admitting import admit  # noqa: PLC0415  it imports torch

    admitted = admit(
        Path(options.archive),
        Path(options.into),
        keys_of(options),
        allowed=options.allow_invalid_rows,
        force=options.force,
    )
    signed = f"signed with {admitted.signer}" if admitted.signer else "signature not checked"
    print(f"{admitted.path}: every member is as its digest says; {signed}")
    return 0
