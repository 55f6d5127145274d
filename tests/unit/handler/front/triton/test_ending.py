"""A file's time tells that an instance's process has gone, unless it was told to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

INSTANCE = """
import sys
from pathlib import Path
from torchrec_handler.front.triton.ending import Ending
ending = Ending(Path(sys.argv[1]))
print("up", flush=True)
if sys.stdin.readline() == "finalize\\n":
    ending.called_for()
"""


@pytest.mark.parametrize(("how", "is_touched"), [("killed", True), ("", True), ("finalize", False)])
def test_a_process_that_ends(how: str, *, is_touched: bool, tmp_path: Path) -> None:
    file = tmp_path / "ended"
    file.touch()
    os.utime(file, (0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", INSTANCE, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "handler")},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    if how == "killed":
        os.kill(process.pid, signal.SIGKILL)
    process.communicate(how.encode() + b"\n")
    end = time.monotonic() + (2 if is_touched else 0.2)
    while file.stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (file.stat().st_mtime > 0) is is_touched


def test_nothing_is_made_of_a_model_that_was_removed(tmp_path: Path) -> None:
    file = tmp_path / "ended"
    subprocess.run(
        [sys.executable, "-c", INSTANCE, str(file)],
        input=b"\n",
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "handler")},
    )
    time.sleep(0.2)
    assert not file.exists()
