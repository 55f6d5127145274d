"""An archive's code run in a process of its own, which may raise, exit, hang or take all memory."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from torchrec_archiver.command_line import STARTUP_SECONDS, log
from torchrec_handler.errors import FactoryError, LoadError, TorchRecServeError

STDERR = 2
"""What is printed for use is the caller's alone."""


def replay(folder: Path, seconds: float = STARTUP_SECONDS) -> None:
    """Load an archive as a worker loads it, and replay its samples.

    Args:
        folder: of its members, checked.
        seconds: how long that may take.

    Raises:
        LoadError: what the worker would say.
        FactoryError: the process ended before it could say anything, or did not end.
    """
    with tempfile.TemporaryDirectory(prefix="torchrec-replay-") as scratch:
        said = Path(scratch, "said")
        command = [sys.executable, "-P", "-m", __name__, str(folder.resolve()), str(said)]
        process = subprocess.Popen(  # noqa: S603  our own command
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            message = f"archive: its code is not done after {seconds:g} s, expected a model by then"
            raise FactoryError(message, hint="--startup-timeout gives it longer") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not said.exists():
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            message = f"archive: its code ended the process that loaded it, with {how}"
            hint = "the system ends one that takes all memory with signal 9"
            raise FactoryError(message, hint=hint if status == -signal.SIGKILL else None)
        fault, hint = json.loads(said.read_text(encoding="utf-8"))
    if fault is not None:
        raise LoadError(fault, hint=hint)


def main(folder: str, said: str) -> None:
    """Replay, and leave the fault and its hint, or twice null, in a file."""
    from torchrec_archiver.answer import answering  # noqa: PLC0415  it imports torch

    log()
    fault: tuple[str | None, str | None] = (None, None)
    try:
        with answering(Path(folder), self_test=True):
            pass
    except TorchRecServeError as error:
        fault = (error.sentence, error.hint)
    Path(said).write_text(json.dumps(fault), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
