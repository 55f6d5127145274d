"""The command line `torchrec-archiver`; option names follow torch-model-archiver's."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from torchrec_archiver.command_line import Parser, log
from torchrec_archiver.report.words import plain
from torchrec_handler import __version__
from torchrec_handler.errors import TorchRecServeError

COMMANDS = (
    *("init", "build", "inspect", "verify", "compare", "predict", "serve", "bench"),
    *("delta", "apply", "squash", "rollback"),
    *("plan", "join", "triton-repository", "sign", "admit", "swap", "completion"),
)
"""Modules of `torchrec_archiver.commands`, `-` for `_`, in the order in which they are shown."""

MOST_SAID = 4000
"""Letters of an error's line; an archive's own words may be in it."""
INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended, as shells give it."""

EXAMPLES = """\
torchrec-archiver init shop --model shop.model:build     # a factory to start from
torchrec-archiver build --model-name shop --version 1.0 --factory shop.factory:Factory
torchrec-archiver predict shop.mar request.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: the command's, or 1 with one ERROR line on standard error, and one with a
        hint where there is one.
    """
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    log()
    try:
        return int(options.run(options))
    except TorchRecServeError as error:
        print(f"ERROR: {_shown(error.sentence)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {_shown(error.hint)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("ERROR: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _shown(text: str) -> str:
    """As it can be printed, line by line."""
    return "\n".join(plain(line, MOST_SAID) for line in text.splitlines())


def _parser() -> Parser:
    parser = Parser(
        prog="torchrec-archiver",
        description="Build TorchServe model archives from TorchRec predict factories.",
        examples=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parser.set_defaults(root=parser, commands=commands.choices)
    for name in COMMANDS:
        command = import_module(f"torchrec_archiver.commands.{name.replace('-', '_')}")
        options = commands.add_parser(name, help=command.HELP, examples=command.EXAMPLES)
        command.add(options)
        options.set_defaults(run=command.run, parser=options)
    return parser


if __name__ == "__main__":
    sys.exit(main())
