"""Runs the commands of a README in a folder of their own, as a reader would."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.paths import ROOT

DEFAULT_SERVER = "http://127.0.0.1:8080"


class Readme:
    """A README's sections, run one by one."""

    def __init__(self, example: str, folder: Path) -> None:
        text = (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")
        self.folder = folder
        (folder / "requirements").symlink_to(ROOT / "requirements")
        self._sections = {
            part.partition("\n")[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)
        }

    def commands(self, section: str) -> str:
        blocks = re.findall(r"^```sh\n(.*?)^```", self._sections[section], re.DOTALL | re.MULTILINE)
        assert blocks, f"no commands in {section}"
        return "".join(blocks)

    def run(self, section: str, changes: Mapping[str, str] | None = None) -> str:
        """Run a section's commands, with some words changed, and return what they print."""
        script = self.commands(section)
        for word, other in (changes or {}).items():
            assert word in script, f"{section} does not say {word}"
            script = script.replace(word, other)
        done = subprocess.run(
            ["/bin/bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "COLUMNS": "120",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "\r" not in done.stderr, "a progress bar in a log"
        return done.stdout
