"""`torchrec-archiver apply`: publishes a delta, and waits until it is served."""

import argparse
from pathlib import Path

from torchrec_archiver.command_line import above_zero, add_keys, keys_of

HELP = "check a delta, publish it, and wait until it is served"
EXAMPLES = """\
torchrec-archiver apply incoming/00000042.delta --base model_store/shop --folder updates/shop
torchrec-archiver apply incoming/00000042.delta --base model_store/shop --folder updates/shop \\
  --wait 10 --management-address http://127.0.0.1:8081
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("delta", metavar="DELTA", help="a .delta file")
    parser.add_argument(
        "--base", required=True, metavar="ARCHIVE", help="that it changes: a .mar or a folder"
    )
    parser.add_argument("--folder", required=True, metavar="FOLDER", help="that the server follows")
    parser.add_argument(
        "--wait", type=above_zero, metavar="SECONDS", help="until it is served; not, if not given"
    )
    parser.add_argument(
        "--management-address",
        default="http://127.0.0.1:8081",
        metavar="URL",
        help="of the server that is waited for",
    )
    add_keys(parser)


def run(options: argparse.Namespace) -> int:
    """Publish a delta, and print its path.

    Raises:
        TorchRecServeError: see `apply_delta` and `wait_served`.
    """
    from torchrec_archiver.deltas.applying import (  # noqa: PLC0415  it imports torch
        Server,
        apply_delta,
        wait_served,
    )
    from torchrec_archiver.deltas.base import open_base  # noqa: PLC0415
    from torchrec_handler.archive.verify import read_manifest  # noqa: PLC0415

    keys = keys_of(options)
    with open_base(Path(options.base), keys) as base:
        path = apply_delta(Path(options.delta), base, Path(options.folder), keys)
        model = str(read_manifest(base.folder).get("modelName"))
    if options.wait:
        server = Server(management=options.management_address, model=model)
        print(f"served after {wait_served(path, server, options.wait):.2f} s")
    print(path)
    return 0
