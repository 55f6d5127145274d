"""What README and docs/requests.md show runs: their requests against the model of `make demo`."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe

README = ROOT / "README.md"
REQUESTS = ROOT / "docs" / "requests.md"


def asks(page: Path) -> list[str]:
    """The requests that a page shows."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "curl -H" in block]


def test_there_is_a_request_and_one_in_each_of_four_formats() -> None:
    assert len(asks(README)) == 1
    assert len(asks(REQUESTS)) == 4


@pytest.mark.parametrize("block", [*asks(README), *asks(REQUESTS)])
def test_a_request_is_answered(block: str, movielens: TorchServe) -> None:
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
