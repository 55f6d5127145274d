"""What the README shows runs: its requests against the model of `make demo`."""

import json
import re
import subprocess

import pytest

from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
ASKS = [block for block in BLOCKS if "curl -H" in block]


def test_the_readme_asks_in_four_formats() -> None:
    assert len(ASKS) == 4


@pytest.mark.parametrize("block", ASKS, ids=lambda block: block.splitlines()[0])
def test_a_request_of_the_readme_is_answered(block: str, movielens: TorchServe) -> None:
    here = str(movielens.inference.base_url).rstrip("/")
    script = block.replace("http://127.0.0.1:8080", here).replace("curl ", "curl --fail -sS ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],  # noqa: S607  the shell of the README
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    scores = answer["default"] if "default" in answer else answer["outputs"][0]["data"]
    assert all(0 < score < 1 for score in scores)
