"""Why a worker did not load a model, out of what it printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchrec_archiver.serving.archive import Model
from torchrec_archiver.serving.running import fault_of, said

MODEL = Model(name="shop", version="1.0", archive=Path(), folder=Path(), index=None)
START = "2026-11-29T11:57:47,602 [INFO ] W-9001-shop_1.0-stdout MODEL_LOG - "
DIED = f"{START}Backend worker process died."
OTHER = START.replace("shop", "toys")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([f"{START}Torch worker started."], ""),
        ([f"{START}ValueError: of a model that goes on"], ""),
        ([f"{OTHER}OptionError: torchrec.threads: received 0"], ""),
        ([f"{START}OptionError: torchrec.threads: received 0"], "torchrec.threads: received 0"),
        (
            [
                f"{START}ModuleNotFoundError: No module named 'shop'",
                f"{START}Backend worker process died.",
            ],
            "ModuleNotFoundError: No module named 'shop'",
        ),
        (
            [
                f"{START}RuntimeError: 500 - Unknown exception",
                f"{START}Backend worker process died.",
            ],
            "its worker died without a word",
        ),
        ([f"{START}Listening on port: /t/.ts.sock.{number}" for number in (9000, 9001)], ""),
        ([f"{START}Listening on port: /t/.ts.sock.9000"] * 2, "its worker died without a word"),
    ],
)
def test_a_worker_s_own_error_is_told(lines: list[str], fault: str) -> None:
    assert fault_of("\n".join(lines), MODEL) == fault


@pytest.mark.parametrize(
    ("answer", "text"),
    [(b'{"code": 404, "message": "Model not found: x"}', "Model not found: x"), (b"no", "no")],
)
def test_an_error_s_message_is_told(answer: bytes, text: str) -> None:
    assert said(answer) == text


def test_what_starts_a_server_imports_no_torch() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys, torchrec_archiver.serving.running, torchrec_archiver.serving.load\n"
                "sys.exit(bool({'torch', 'torchrec', 'httpx', 'ts'} & set(sys.modules)))"
            ),
        ],
        check=False,
    )
    assert done.returncode == 0
