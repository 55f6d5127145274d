"""The other list of versions, where `make test-versions` has installed it."""

import json
import os
import subprocess
from typing import Any

import pytest

from tests.support.paths import ROOT

OTHER_PYTHON = os.environ.get("OTHER_PYTHON")
"""The interpreter of the other environment."""

needs_the_other = pytest.mark.skipif(
    not OTHER_PYTHON, reason="only one list of versions is installed"
)


def run_other(*arguments: str) -> Any:
    """What the other environment prints of `tests.support.archives.exchanged`."""
    assert OTHER_PYTHON
    command = [OTHER_PYTHON, "-W", "ignore", "-m", "tests.support.archives.exchanged", *arguments]
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "handler", "archiver"))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])
