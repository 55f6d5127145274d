"""What the pages say is so: they are as the code writes them, lead somewhere, and can be read."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from docs import generate
from tests.support.paths import ROOT
from torchrec_handler.archive.format import (
    Count,
    DenseDtypes,
    Hashed,
    Index,
    InputSignature,
    OutputSplit,
    Signature,
    TableEntry,
)
from torchrec_handler.errors import TorchRecServeError

PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + PAGES
LONGEST_README = 150


def prose(path: Path) -> list[str]:
    """The lines of a page, code apart."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = [line.lstrip("# ") for line in prose(path) if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_what_the_code_says_is_what_the_page_says(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == generate.pages()[page], "make docs"


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_every_option_says_what_it_does(page: Path) -> None:
    assert not [line for line in generate.pages()[page].splitlines() if line.endswith("|  |")]


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("## `archive.json`", Index),
        ("### Signature", Signature),
        ("Each of `inputs`:", InputSignature),
        ("Each of `hashed`:", Hashed),
        ("Each split of `splits`:", OutputSplit),
        ("Each of `counts`:", Count),
        ("### Dense types", DenseDtypes),
        ("### Tables", TableEntry),
    ],
)
def test_fields_of_the_archive_format_are_those_of_the_code(title: str, kind: type) -> None:
    page = (ROOT / "docs" / "archive-format.md").read_text(encoding="utf-8")
    _, _, after = page.partition(f"\n{title}\n")
    table = re.search(r"^\| field .*?\n\n", after, flags=re.MULTILINE | re.DOTALL)
    assert table
    names = re.findall(r"^\| `(\w+)` \|", table[0], flags=re.MULTILINE)
    assert sorted(names) == sorted(known.name for known in fields(kind))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", "\n".join(prose(page))):
        led = (page.parent / target).resolve() if target else page
        assert led.exists(), target
        assert not anchor or anchor in anchors(led), f"{target}#{anchor}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_lines_can_be_read_in_a_terminal(page: Path) -> None:
    """Tables and code apart."""
    for line in prose(page):
        assert line.startswith("|") or len(line) <= 110, line


def test_the_readme_s_model_is_the_one_that_is_built_and_asked() -> None:
    """In tests/whole/handler/test_simple.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tested = ROOT / "tests" / "support" / "factories" / "readme_model.txt"
    assert re.findall(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL) == [
        tested.read_text(encoding="utf-8")
    ]


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= LONGEST_README
    for page in PAGES:
        assert f"(docs/{page.name})" in readme, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_starts_with_what_it_answers(page: Path) -> None:
    title, empty, sentence = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ")
    assert not empty
    assert sentence.endswith(".")


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_commands_are_those_of_the_makefile(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def texts_of_the_code() -> Iterator[str]:
    """Every text that the sources hold, with … for what is put in."""
    for path in (*(ROOT / "handler").rglob("*.py"), *(ROOT / "archiver").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )


def leaves(kind: type[TorchRecServeError]) -> Iterator[str]:
    """Kinds of errors that users meet by name."""
    for inner in kind.__subclasses__():
        yield inner.__name__
        yield from leaves(inner)


def test_troubleshooting_has_an_entry_for_every_error() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    titles = set(re.findall(r"^## (\w+)$", page, flags=re.MULTILINE))
    assert set(leaves(TorchRecServeError)) - {"RequestError"} == titles


def test_troubleshooting_quotes_messages_as_they_are() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    known = "\n".join(texts_of_the_code())
    ours, _, _ = page.partition("## TorchServe's own")
    cells = [row.split("|")[1] for row in re.findall(r"^\|.*$", ours, flags=re.MULTILINE)]
    quoted = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 30
    for message in quoted:
        for words in re.split("…|: |; |, received |, expected ", message):
            assert words.strip(" :,()") in known, message
