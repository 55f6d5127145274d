"""How an archive is shown in a terminal, and where there is none."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from tests.support.archives import hostile
from torchrec_archiver.report.terminal import show
from torchrec_handler.archive.format import MANIFEST
from torchrec_handler.archive.read import Description

DESCRIPTION = hostile.described(index=hostile.index(["t_user", "t_" + "long" * 25]))


def printed(description: Description, console: Console) -> list[str]:
    file = StringIO()
    console.file = file
    show(description, console)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_s_lines_fit(width: int) -> None:
    lines = printed(DESCRIPTION, Console(width=width, force_terminal=True, color_system=None))
    assert max(map(len, lines)) <= width
    assert any(line.startswith("model          shop 1.0") for line in lines)
    digest = "0" * 64 if width == 120 else f"{'0' * 16}…"
    (member,) = (line.split() for line in lines if line.startswith(MANIFEST))
    assert member == [MANIFEST, "500", "B", digest]


def test_a_program_reads_a_row_a_line() -> None:
    lines = [" ".join(line.split()) for line in printed(DESCRIPTION, Console())]
    assert f"t_{'long' * 25} 2 8 int8 24 B 0.002 0.0005" in lines
    assert f"{MANIFEST} 500 B {'0' * 64}" in lines
    assert "model: shop 1.0" in lines


@pytest.mark.parametrize("is_terminal", [False, True])
def test_hostile_names_are_text(is_terminal: bool) -> None:  # noqa: FBT001
    description = replace(DESCRIPTION, index=hostile.evil())
    console = Console(width=200, force_terminal=is_terminal, color_system=None)
    lines = printed(description, console)
    assert all(line.replace("\x1b[1m", "").isprintable() for line in lines)
    text = " ".join(" ".join(lines).split())
    assert hostile.SHOWN in text
