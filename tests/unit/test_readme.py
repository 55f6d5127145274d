"""What the README names is there, and its lines can be read."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in anchors, anchor


def test_commands_of_the_readme_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_options_of_the_readme_are_all_there_are() -> None:
    """Every option of model-config.yaml stands in the table of options."""
    from torchrec_handler.options import Options  # noqa: PLC0415

    for name, section in Options().model_dump().items():
        for inner in section if isinstance(section, dict) else [""]:
            option = f"{name}.{inner}".rstrip(".")
            assert f"`{option}`" in README or f"`.{inner}`" in README, option


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_lines_can_be_read_in_a_terminal(name: str) -> None:
    """Tables and code apart."""
    in_code = False
    for line in Path(ROOT, name).read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        if not in_code and not line.startswith("|"):
            assert len(line) <= 110, line
