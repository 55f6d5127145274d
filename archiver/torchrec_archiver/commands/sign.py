"""`torchrec-archiver sign`: signs an archive with a key of one's own."""

import argparse
import getpass
from pathlib import Path

from torchrec_archiver.near import check_there

HELP = "sign an archive with a private key"
EXAMPLES = """\
openssl ecparam -name prime256v1 -genkey -noout -out release.pem
torchrec-archiver sign model_store/shop.mar --private-key release.pem
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument(
        "--private-key",
        required=True,
        metavar="PATH",
        help="a PEM file with an elliptic curve's key, such as openssl makes",
    )
    parser.add_argument("--ask-password", action="store_true", help="of the private key")


def run(options: argparse.Namespace) -> int:
    """Sign an archive.

    Raises:
        BuildError, ArchiveError, LoadError: see `sign_archive`.
    """
    from torchrec_archiver.signing import sign_archive  # noqa: PLC0415

    check_there(Path(options.archive))
    password = getpass.getpass("Password of the private key: ") if options.ask_password else None
    sign_archive(Path(options.archive), Path(options.private_key), password)
    print(f"{options.archive}: signed")
    return 0
