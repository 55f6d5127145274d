"""What serving imports."""

import subprocess
import sys


def test_imports_nothing_of_torchserve() -> None:
    code = "import torchrec_handler.serve.engine, sys; assert 'ts' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
