"""The form of the command line: its parsers, and what a typing error is told."""

import argparse
from difflib import get_close_matches
from typing import Any, NoReturn

LONGEST_COMMAND = 14
"""Characters, with the indent."""


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


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
