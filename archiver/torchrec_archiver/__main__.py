"""The command line `torchrec-archiver`; option names follow torch-model-archiver's."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from torchrec_handler import __version__
from torchrec_handler.errors import TorchRecServeError

COMMANDS = ("build", "inspect", "serve", "bench")
"""Modules of `torchrec_archiver.commands`, in the order in which they are shown."""

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended, as shells give it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: the command's, or 1 with one ERROR line on standard error.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    # torch-model-archiver logs what it also raises.
    logging.getLogger().addFilter(lambda record: record.module != "model_packaging_utils")
    logging.getLogger("torchrec_archiver").setLevel(logging.INFO)
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        return int(options.run(options))
    except TorchRecServeError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ERROR: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End as every other wrong input does."""
        self.exit(1, f"ERROR: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="torchrec-archiver",
        description="Build TorchServe model archives from TorchRec predict factories.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f"torchrec_archiver.commands.{name}")
        options = commands.add_parser(name, help=command.HELP, allow_abbrev=False)
        command.add(options)
        options.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
