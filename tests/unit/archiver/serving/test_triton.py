"""What is told of a Triton that ended."""

from pathlib import Path

import pytest

from torchrec_archiver.serving.triton import Triton

STACK = """
 0# 0x000055D79ED6E52D in tritonserver
 1# 0x00007F70A265A050 in /lib/x86_64-linux-gnu/libc.so.6

"""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "it was killed, or printed no reason"),
        (
            f"Error: Failed to initialize NVML\nSignal (11) received.{STACK}",
            "Signal (11) received.",
        ),
        (
            (
                "terminate called after throwing an instance of 'std::bad_alloc'\n"
                f"  what():  std::bad_alloc\nSignal (6) received.{STACK}"
            ),
            "std::bad_alloc",
        ),
        (
            (
                "E1129 lifecycle.cc:642] \"failed to load 'shop' version 1: Internal: LoadError: "
                'no\\n\\nAt:\\n"\nerror: creating server: Internal - failed to load all models\n'
            ),
            "creating server: Internal - failed to load all models",
        ),
    ],
)
def test_what_it_said(output: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_text(output)
    assert Triton({}, tmp_path, repository=tmp_path).said() == said
