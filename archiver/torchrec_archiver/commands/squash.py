"""`torchrec-archiver squash`: several deltas as one."""

import argparse
from pathlib import Path

from torchrec_archiver.command_line import add_deltas, keys_of, signer_of, whole

HELP = "publish one delta that stands for several"
EXAMPLES = """\
torchrec-archiver squash --base model_store/shop --folder updates/shop
torchrec-archiver squash --base model_store/shop --folder updates/shop --to 400 --remove
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument(
        "--from",
        dest="first",
        type=whole,
        default=1,
        metavar="N",
        help="the first generation that it covers; 1",
    )
    parser.add_argument(
        "--to",
        type=whole,
        metavar="N",
        help="the last one; the newest when not given",
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="remove the deltas that it stands for: nothing in between can be gone back to",
    )
    add_deltas(parser)


def run(options: argparse.Namespace) -> int:
    """Publish the delta, and print its path.

    Raises:
        TorchRecServeError: see `squash`.
    """
    from torchrec_archiver.deltas.base import open_base  # noqa: PLC0415  they import torch
    from torchrec_archiver.deltas.history import remove_covered, squash  # noqa: PLC0415
    from torchrec_archiver.deltas.writing import Signer  # noqa: PLC0415

    keys, folder = keys_of(options), Path(options.folder)
    with open_base(Path(options.base), keys) as base:
        path = squash(
            base,
            folder,
            first=options.first,
            last=options.to,
            keys=keys,
            signer=Signer(*signer_of(options)),
        )
    if options.remove:
        print(f"removed: {remove_covered(path)} deltas that it stands for")
    print(path)
    return 0
