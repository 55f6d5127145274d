"""What packed layers need of torch."""

import subprocess
import sys


def test_no_data_type_warns_or_needs_torchscript() -> None:
    """In a process of its own, since torch warns once."""
    code = (
        "import warnings, fbgemm_gpu, torch; torch.jit.script = torch.jit.trace = None\n"
        "from torchrec_handler.kernels.packed import Layers\n"
        "from torchrec_handler.kernels.products import RELU, Layer\n"
        "warnings.simplefilter('error')\n"
        "layer = Layer(weight=torch.eye(64), bias=torch.zeros(64), activation=RELU)\n"
        "for dtype in ('float32', 'bfloat16', 'int8'):\n"
        "    print(int(Layers([layer, layer], dtype)(torch.ones(1, 64)).sum()))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.split(), done.stderr) == (["64", "64", "64"], "")
