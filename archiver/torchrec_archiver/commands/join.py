"""`torchrec-archiver join`: ranks of another machine's TorchServe on this one, until Ctrl-C."""

import argparse
from functools import partial
from pathlib import Path

from torchrec_archiver.command_line import add_keys, keys_of
from torchrec_archiver.commands.serve import number, stoppable

HELP = "hold a part of the tables that TorchServe on another machine serves"
EXAMPLES = """\
torchrec-archiver join model_store/shop.mar --rdzv-endpoint first:29400 --nnodes 2 --node-rank 1
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument(
        "--rdzv-endpoint",
        required=True,
        metavar="HOST:PORT",
        help="as the archive's model-config.yaml has it: of the machine that runs TorchServe",
    )
    parser.add_argument(
        "--nnodes", required=True, type=number, metavar="N", help="machines, that one included"
    )
    parser.add_argument(
        "--node-rank",
        required=True,
        type=number,
        metavar="N",
        help="which of them this is: 1, 2, …; TorchServe's is 0",
    )
    parser.add_argument(
        "--nproc-per-node", type=number, default=1, metavar="N", help="ranks of this machine"
    )
    parser.add_argument(
        "--rdzv-id",
        metavar="NAME",
        help="what TorchServe calls the ranks: MODEL_PORT; MODEL_29500 when not given, which is "
        "the first model with ranks of a server",
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", type=Path, help="where the archive is unpacked"
    )
    add_keys(parser)


def run(options: argparse.Namespace) -> int:
    """Follow until Ctrl-C or SIGTERM.

    Raises:
        ArchiveError, LoadError, ServeError: see `join`.
    """
    from torchrec_archiver.joining import Rendezvous, join  # noqa: PLC0415  it reads archives

    rendezvous = Rendezvous(
        endpoint=options.rdzv_endpoint,
        nnodes=options.nnodes,
        node_rank=options.node_rank,
        nproc_per_node=options.nproc_per_node,
        rdzv_id=options.rdzv_id,
    )
    try:
        with stoppable():
            join(
                Path(options.archive),
                rendezvous,
                keys_of(options),
                folder=options.folder,
                tell=partial(print, flush=True),
            )
    except KeyboardInterrupt:
        print("Stopped; nothing is left of it", flush=True)
    return 0
