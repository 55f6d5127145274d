"""`torchrec-archiver rollback`: what an earlier generation was, as a new one."""

import argparse
from pathlib import Path

from torchrec_archiver.command_line import add_deltas, keys_of, signer_of, whole

HELP = "publish a generation that is what an earlier one was"
EXAMPLES = """\
torchrec-archiver rollback --base model_store/shop --folder updates/shop --to 41
torchrec-archiver rollback --base model_store/shop --folder updates/shop --to 0   # the archive
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument(
        "--to", required=True, type=whole, metavar="N", help="the generation to go back to"
    )
    add_deltas(parser)


def run(options: argparse.Namespace) -> int:
    """Publish the delta, and print its path.

    Raises:
        TorchRecServeError: see `rollback`.
    """
    from torchrec_archiver.deltas.base import open_base  # noqa: PLC0415  they import torch
    from torchrec_archiver.deltas.history import rollback  # noqa: PLC0415
    from torchrec_archiver.deltas.writing import Signer  # noqa: PLC0415

    keys, signer = keys_of(options), Signer(*signer_of(options))
    with open_base(Path(options.base), keys) as base:
        path = rollback(base, Path(options.folder), options.to, keys=keys, signer=signer)
    print(path)
    return 0
