"""The decoders give answers and typed errors only, in bounded memory, whatever the bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.mark.timeout(SECONDS + 120)
def test_decoders_survive_a_coverage_guided_fuzzer(tmp_path: Path) -> None:
    """FUZZ_SECONDS=600 in `make soak`."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.decoders", str(tmp_path)),
            f"-max_total_time={SECONDS}",
            # 1,300 MB are torch and what the instrumented imports take.
            "-rss_limit_mb=2048",
            "-timeout=10",
            "-max_len=4096",
            "-seed=1",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/handler:{ROOT}"},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    runs = re.search(r"Done (\d+) runs in", done.stdout)
    assert runs is not None, done.stdout[-4000:]
    assert int(runs[1]) > 1000 * SECONDS / 60
