"""The page of `inspect --html` as a real Chromium shows it."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.support.archives import hostile
from tests.support.command_line import run
from torchrec_archiver.report.page import MOST_ROWS

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ),
    *("--no-first-run", "--enable-logging=stderr", "--v=0"),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, a Debian package")


def browse(page: Path, *options: str) -> tuple[str, list[str]]:
    """What Chromium prints of a page, and the lines of its console."""
    profile = page.parent / "profile"
    done = subprocess.run(
        [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class Document(HTMLParser):
    """Text of table rows and of the title, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.title = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, _: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag if tag != "bdi" else self._inside
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._inside in {"td", "th"}:
            self.rows[-1][-1] += data.strip()
        elif self._inside == "title" and not self.title:
            self.title = data


def write(folder: Path, *names: str) -> Path:
    """The page of an archive all of whose texts are hostile."""
    folder.mkdir(exist_ok=True)
    model = {"modelName": hostile.EVIL, "modelVersion": "1.0"}
    index = hostile.index([hostile.EVIL, *names], hostile.EVIL)
    archive = hostile.write(folder / "shop.mar", index, model)
    assert run("inspect", archive, "--html", folder / "report.html") == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("page"), "t_user", "t_" + "long" * 1250)


def test_hostile_names_are_text_and_no_script_runs(page: Path) -> None:
    text, console = browse(page, "--dump-dom")
    document = Document(text)
    assert console == []
    assert document.title == f"{hostile.SHOWN} 1.0"
    assert not document.tags & {"script", "img"}
    assert [hostile.SHOWN, "1", "8", "int8", "12 B", "0.001", "0.00025"] in document.rows
    assert ["t_user", "2", "8", "int8", "24 B", "0.002", "0.0005"] in document.rows
    long = f"{('t_' + 'long' * 1250)[:120]}… (5,002 letters)"
    assert [long, "3", "8", "int8", "36 B", "0.003", "0.00075"] in document.rows


def test_a_script_that_came_in_all_the_same_would_not_run(page: Path, tmp_path: Path) -> None:
    """By the page's own policy; and the console is heard."""
    pierced = tmp_path / "pierced.html"
    script = "<script>document.title='owned'</script><p style='color:red'>"
    pierced.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{script}"))
    text, console = browse(pierced, "--dump-dom")
    document = Document(text)
    assert "script" in document.tags
    assert document.title == f"{hostile.SHOWN} 1.0"
    assert len(console) == 2
    assert all("Content Security Policy" in line for line in console), console


@pytest.mark.parametrize(
    ("scheme", "colour"), [("1", (255, 255, 255)), ("0", (18, 23, 29))], ids=["light", "dark"]
)
def test_it_is_seen_in_light_and_dark(
    page: Path, tmp_path: Path, scheme: str, colour: tuple[int, int, int]
) -> None:
    picture = tmp_path / "seen.png"
    browse(
        page,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=400,900",
        f"--screenshot={picture}",
    )
    seen = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
    assert seen.getpixel((2, 2)) == colour
    across = [x for x in range(400) for y in range(900) if seen.getpixel((x, y)) == (76, 120, 168)]
    assert across, "no bar is drawn"
    assert 20 <= min(across) < 40 < max(across) < 340, "bars begin and end on the screen"


def test_a_page_of_many_tables_is_shown(tmp_path: Path) -> None:
    page = write(tmp_path / "many", *(f"t_{at}" for at in range(20_000)))
    assert page.stat().st_size < 2_000_000
    text, console = browse(page, "--dump-dom")
    rows = Document(text).rows
    assert console == []
    assert len([row for row in rows if row[0].startswith("t_")]) == MOST_ROWS
    assert ["20,001 tables", "200,030,001", "", "", "2.4 GB", "", ""] in rows
