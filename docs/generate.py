"""Writes what the pages of this folder say of options and of the command line; `make docs`.

Each page has one part between two markers that comes from the code: the options from their types
and docstrings, the command line from its parsers' own help.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from torchrec_archiver.__main__ import _parser as parser
from torchrec_handler.options import SECTION, Options

DOCS = Path(__file__).parent
BEGIN = "<!-- what follows is written by `make docs` -->"
END = "<!-- until here -->"


def pages() -> dict[Path, str]:
    """Each page with a part from the code -> the whole page as it should be."""
    parts = {"options.md": options(Options()), "command-line.md": command_line(parser())}
    return {DOCS / name: _with_part(DOCS / name, part) for name, part in parts.items()}


def options(section: BaseModel, name: str = "") -> str:
    """A table of a section's options, then one of each section in it."""
    kind = type(section)
    lines = [f"## `{name or SECTION}`", "", _words(kind.__doc__), ""]
    lines += ["| option | type | default | what it does |", "| --- | --- | --- | --- |"]
    inner = []
    for key, info in kind.model_fields.items():
        default = getattr(section, key)
        if isinstance(default, BaseModel):
            inner.append(options(default, key))
            continue
        cells = (
            f"`{name}.{key}`".replace("`.", "`"),
            _type(info.annotation, info.metadata),
            "" if default is None or default in ({}, []) else f"`{_plain(default)}`",
            _words(info.description),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *inner])


def command_line(parser: argparse.ArgumentParser) -> str:
    """Examples of each command, and a table of its arguments."""
    tables = []
    for action in parser._actions:  # noqa: SLF001  argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help for choice in action._choices_actions}  # noqa: SLF001
            for name, command in action.choices.items():
                tables.append("\n".join(_command(name, helps[name], command)))
    return "\n\n".join(tables)


def _type(kind: Any, rules: Sequence[Any]) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) in {Union, UnionType}:
        return " or ".join(_type(one, ()) for one in get_args(kind) if one is not type(None))
    if kind is bool:
        return "`true`, `false`"
    if kind in {int, float}:
        words = {"ge": "from {:,}", "gt": "above {:,}", "le": "to {:,}"}
        said = [
            text.format(getattr(rule, bound))
            for bound, text in words.items()
            for rule in rules
            if hasattr(rule, bound)
        ]
        return " ".join(["whole number" if kind is int else "number", *said])
    of = {list: "list of {}s", Mapping: "mapping of names to {}"}.get(get_origin(kind), "")
    return of.format(_type(get_args(kind)[-1], ())) if of else "name"


def _command(name: str, said: str | None, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (f"## {name}", "", f"`{parser.prog}`: {said}.", "")
    if examples := str(getattr(parser, "examples", "")).strip():
        yield from ("```sh", examples, "```", "")
    yield from ("| argument | default | what it does |", "| --- | --- | --- |")
    for action in parser._actions:  # noqa: SLF001
        if not isinstance(action, argparse._HelpAction):  # noqa: SLF001
            value = ""
            if action.option_strings and action.nargs != 0:
                value = f" {action.metavar or ('CHOICE' if action.choices else 'TEXT')}"
            names = ", ".join(action.option_strings) or str(action.metavar)
            default = "required" if action.required else _default(action.default)
            choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
            said = _words(action.help) + (f"; one of {choices}" if choices else "")
            yield f"| `{names}{value}` | {default} | {said} |"


def _default(value: object) -> str:
    return f"`{value}`" if isinstance(value, str) else ""


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def _with_part(path: Path, part: str) -> str:
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        message = f"{path}: has no part between {BEGIN} and {END}"
        raise ValueError(message)
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
