"""An archive's facts and tables in a terminal, and plainer where there is none."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchrec_archiver.report.facts import facts
from torchrec_archiver.report.sections import Section, Times, sections
from torchrec_handler.archive.read import Description

MOST_ROWS = 200
"""Of a section."""
PLAIN_WIDTH = 10_000
"""Nothing is folded that a program reads."""
WIDE, DIGEST_WIDTH = 110, 17
"""A terminal with room for whole digests, and how much of them others show."""


def show(description: Description, console: Console, times: Times | None = None) -> None:
    """Print what an archive says of itself.

    A terminal gets tables that fold at its width; anything else columns, a row a line.

    Args:
        description: of the archive.
        console: where to.
        times: of the archive's stages, where they were taken.
    """
    console = show_sections(sections(description, MOST_ROWS, times), console)
    if not console.is_terminal:
        for name, value in facts(description).items():
            console.print(Text(f"{name}: {value}"))
        return
    grid = Table.grid(padding=(0, 2))
    for name, value in facts(description).items():
        grid.add_row(Text(name, style="bold"), Text(value))
    console.print(grid)


def show_sections(shown: Iterable[Section], console: Console) -> Console:
    """Print tables, each with its title and note.

    Returns:
        What they were printed with: of a file, one that folds nothing.
    """
    if not console.is_terminal:
        console = Console(file=console.file, width=PLAIN_WIDTH)
    for section in shown:
        console.print(Text(section.title, style="bold"))
        console.print(_table(section, console))
        if section.note:
            console.print(Text(section.note, style="dim"))
        console.print()
    return console


def _table(section: Section, console: Console) -> Table:
    is_plain = not console.is_terminal
    table = Table(
        box=None if is_plain else box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_footer=bool(section.total),
        header_style="" if is_plain else "dim",
        footer_style="bold",
    )
    for at, column in enumerate(section.columns):
        table.add_column(
            Text(column.name),
            footer=Text(section.total[at]) if section.total else "",
            justify="right" if column.is_number else "left",
            no_wrap=column.is_number or column.is_digest,
            overflow="ellipsis" if column.is_digest else "fold",
            max_width=DIGEST_WIDTH if column.is_digest and console.width < WIDE else None,
        )
    for row in section.rows:
        table.add_row(*map(Text, row))
    return table
