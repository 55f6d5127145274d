"""A build that is killed half way."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.archives import good
from tests.support.paths import ROOT

OWN_WEIGHTS = "INFO: weights: none are given, so those that the factory makes are packed\n"


def kill(workspace: Path, store: Path, number: signal.Signals) -> tuple[int, str]:
    """Build a large archive in a process of its own and send it a signal while it is written.

    Returns:
        The exit status, and what standard error says of it.
    """
    command = [
        *(str(Path(sys.executable).with_name("torchrec-archiver")), "build"),
        *("--model-name", "large", "--version", "1.0"),
        *("--factory", "tests.support.factories.large:LargePredictFactory"),
        *("--export-path", str(store), "--force", "--archive-format", "default"),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        # A job in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(path.stat().st_size for path in workspace.glob("*/large.mar")):
        with pytest.raises(subprocess.TimeoutExpired):  # it goes on
            process.wait(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert said.startswith(OWN_WEIGHTS)
    return process.returncode, said.removeprefix(OWN_WEIGHTS)


def test_a_build_that_is_interrupted_leaves_nothing(workspace: Path, store: Path) -> None:
    """Ctrl-C."""
    assert kill(workspace, store, signal.SIGINT) == (
        130,
        "ERROR: interrupted; nothing was written\n",
    )
    assert not list(store.iterdir())
    assert not list(workspace.iterdir())


def test_a_build_that_is_terminated_leaves_nothing(workspace: Path, store: Path) -> None:
    assert kill(workspace, store, signal.SIGTERM) == (128 + signal.SIGTERM, "")
    assert not list(store.iterdir())
    assert not list(workspace.iterdir())


def test_a_build_that_is_killed_outright_leaves_the_model_store_as_it_was(
    workspace: Path, store: Path
) -> None:
    """And the next build removes what it left elsewhere."""
    large = store / "large.mar"
    large.write_bytes(b"the archive that is served")
    assert kill(workspace, store, signal.SIGKILL) == (-signal.SIGKILL, "")
    assert list(store.iterdir()) == [large]
    assert large.read_bytes() == b"the archive that is served"
    assert [path.name for path in workspace.glob("*/*.mar")] == ["large.mar"]
    archive = good.build(store)
    assert sorted(store.iterdir()) == [large, archive]
    assert not list(workspace.iterdir())
