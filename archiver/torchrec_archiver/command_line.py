"""The form of the command line: its parsers, and what a typing error is told."""

import argparse
import logging
from collections.abc import Iterable
from difflib import get_close_matches
from getpass import getpass
from pathlib import Path
from typing import Any, NoReturn

from torchrec_handler.archive.trust import TRUSTED_KEYS, find_keys, trusted_keys
from torchrec_handler.errors import BuildError

LONGEST_COMMAND = 14
"""Characters, with the indent."""

STARTUP_SECONDS = 600.0
"""As long as an archive gives its workers that was built without a word of it."""
TRUSTED_OPTION = "--trusted-keys"


class Parser(argparse.ArgumentParser):
    """A parser whose help shows examples, and whose errors are one ERROR line and one hint."""

    def __init__(self, *, examples: str = "", **arguments: Any) -> None:
        """Take what argparse takes, and lines of shell to show under the options."""
        super().__init__(
            allow_abbrev=False,
            formatter_class=_Help,
            epilog=examples and f"examples:\n{_indented(examples)}",
            **arguments,
        )
        self.examples = examples
        self._given: list[str] = []
        self._near = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the arguments too: of what is wrong with one, another may be the reason."""
        if args is not None:
            self._given = list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End as every other wrong input does."""
        near = self._near or self._near_option()
        hint = f"did you mean {near}? See {self.prog} --help" if near else f"{self.prog} --help"
        self.exit(1, f"ERROR: {message}\nhint: {hint}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(map(str, action.choices or ()))
        self._near = next(iter(get_close_matches(str(value), choices, n=1)), "")
        super()._check_value(action, value)
        self._near = ""

    def _near_option(self) -> str:
        """An option that one of those given, which is none, looks like."""
        known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        for given in self._given:
            # Without the dashes, which make short names look like any other.
            name = given.partition("=")[0].removeprefix("--")
            if given.startswith("--") and name and name not in known:
                return next((f"--{near}" for near in get_close_matches(name, known, n=1)), "")
        return ""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # argparse's own sum leaves out how far the commands are indented.
        self._action_max_length = LONGEST_COMMAND


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option that names public keys."""
    parser.add_argument(
        TRUSTED_OPTION,
        action="extend",
        nargs="+",
        default=[],
        type=Path,
        metavar="PATH",
        help="public keys, or folders of them, of which one has to have signed the archive; "
        f"those of {TRUSTED_KEYS} when not given",
    )


def keys_of(options: argparse.Namespace) -> list[Path]:
    """The public keys that an archive has to be signed with one of; none where none is trusted.

    Raises:
        LoadError: see `find_keys`.
    """
    given = [path.resolve() for path in options.trusted_keys]
    return find_keys(TRUSTED_OPTION, given) if given else trusted_keys()


def add_invalid_rows(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option that names tables whose rows need not be finite."""
    parser.add_argument(
        "--allow-invalid-rows",
        action="append",
        default=[],
        metavar="TABLE",
        help="take a table with NaN, infinity, or what is too large for its type, repeatable",
    )


def add_startup_timeout(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option that bounds how long an archive's code may take to load."""
    parser.add_argument(
        "--startup-timeout",
        type=above_zero,
        default=STARTUP_SECONDS,
        metavar="S",
        help=f"seconds in which the model has to be loaded; {STARTUP_SECONDS:g}",
    )


def above_zero(text: str) -> float:
    """A number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 0 < given < float("inf"):
        message = f"received {text!r}, expected a number above 0"
        raise argparse.ArgumentTypeError(message)
    return given


def add_weights(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Give a parser the options that name a checkpoint and what of it to read."""
    parser.add_argument(
        "--weights",
        required=required,
        metavar="PATH",
        help="a torch.save file, safetensors, an index of either, a folder with a file of each "
        "rank, or a torch.distributed.checkpoint",
    )
    parser.add_argument(
        "--weights-map",
        action="append",
        default=[],
        type=prefixes,
        metavar="OLD=NEW",
        help="a prefix of the checkpoint's names to replace, repeatable",
    )
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="the part of the checkpoint that is the model's, such as ema or app.model",
    )
    parser.add_argument(
        "--ignore-weights",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names of the checkpoint to leave out, such as '*._metrics.*', repeatable",
    )


def add_deltas(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that name an archive and the folder of its deltas."""
    parser.add_argument(
        "--base", required=True, metavar="ARCHIVE", help="that deltas change: a .mar or a folder"
    )
    parser.add_argument(
        "--folder", required=True, metavar="FOLDER", help="where its deltas are published"
    )
    add_keys(parser)
    parser.add_argument(
        "--sign", metavar="KEY", help="a PEM file with the private key to sign with"
    )
    parser.add_argument("--ask-password", action="store_true", help="of the private key")


def signer_of(options: argparse.Namespace) -> tuple[Path | None, str | None]:
    """The private key to sign with, and its password; None where nothing is signed."""
    password = getpass("Password of the private key: ") if options.ask_password else None
    return options.sign and Path(options.sign), password


def whole(text: str) -> int:
    """A whole number, 0 or more.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal():
        message = f"received {text!r}, expected 0, 1, 2, …"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def by_name(option: str, named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> value; a name given twice would silently lose one.

    Raises:
        BuildError: one is.
    """
    values: dict[str, str] = {}
    for name, value in named:
        if name in values:
            message = f"{option}: {name!r} is given twice: {values[name]} and {value}"
            raise BuildError(message)
        values[name] = value
    return values


def prefixes(text: str) -> tuple[str, str]:
    """OLD and NEW of OLD=NEW.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    old, separator, new = text.partition("=")
    if not separator:
        message = f"received {text!r}, expected OLD=NEW"
        raise argparse.ArgumentTypeError(message)
    return old, new


def log() -> None:
    """Let what is logged be lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    # torch-model-archiver logs what it also raises.
    logging.getLogger().addFilter(lambda record: record.module != "model_packaging_utils")
    logging.getLogger("torchrec_archiver").setLevel(logging.INFO)
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
