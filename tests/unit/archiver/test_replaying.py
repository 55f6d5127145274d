"""A process that ends without a word, in place of the one that loads an archive."""

import sys
from pathlib import Path

import pytest

from torchrec_archiver.replaying import replay
from torchrec_handler.errors import FactoryError


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "its code ended the process that loaded it, with exit status 3"),
        (
            "kill -9 $$",
            (
                "its code ended the process that loaded it, with signal 9; "
                "the system ends one that takes all memory with signal 9"
            ),
        ),
        (
            "sleep 60 & wait",
            (
                "its code is not done after 0.2 s, expected a model by then; "
                "--startup-timeout gives it longer"
            ),
        ),
    ],
)
def test_how_it_ended_is_told(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(FactoryError) as caught:
        replay(tmp_path, 0.2 if "sleep" in script else 60)
    assert str(caught.value) == f"archive: {said}"
