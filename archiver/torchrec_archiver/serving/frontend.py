"""TorchServe's processes: started in a folder of their own, watched, ended, none left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

from torchrec_archiver.locked import hold, make_folder
from torchrec_archiver.serving import java, settings
from torchrec_handler.errors import ServeError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a program: Ctrl-C, a service manager, a terminal that is closed."""

PREFIX = "torchrec-serve-"
SHORT = Path("/tmp")  # noqa: S108  what is made in it is this user's alone
LONGEST_TEMP = 92
"""Bytes of a folder's path: workers' sockets lie in it, and a socket's path has 107."""

END_SECONDS = 20
"""How long processes are given to end by themselves."""

ORPHAN_SECONDS = 2

STARTED_BY = ("-m", "ts.model_server", "--start", "--foreground", "--ncs")
"""What the command `torchserve` runs, found wherever the packages of this Python lie."""

BINARIES = str(Path(sys.executable).parent)

NO_FILES = "-XX:-UsePerfData"
"""For Java, which otherwise keeps a file of counters in /tmp/hsperfdata_USER."""

OLD_JAVA = "UnsupportedClassVersionError"
STACK = re.compile(r"\s+at |\s*\.\.\. \d+ more|Traceback ")
WORKERS = " MODEL_LOG - "
FAULT = re.compile(r"\b(Exception|Error)\b|\w(Exception|Error):|^ERROR|^Invalid |^--|not found")


class Frontend:
    """TorchServe inside of a `with` block, which writes into one folder only.

    It is a session of its own, so that Ctrl-C in a terminal reaches the program that started it and
    not its workers.
    """

    def __init__(  # noqa: PLR0913  what a server may be given
        self,
        configuration: Mapping[str, str],
        temp: Path,
        *,
        model_store: Path,
        models: Sequence[str] = (),
        log_config: Path | None = settings.LOG_CONFIG,
        logs: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what it is started with.

        Args:
            configuration: TorchServe's settings.
            temp: from `temporary`; one server's alone.
            model_store: where archives are read from.
            models: what it loads at its start, `NAME=ARCHIVE` each.
            log_config: a log4j2.xml; None where the settings say where logging is configured.
            logs: a folder; one in `temp` when not given.
            variables: of its processes, beside this process's own.
        """
        self.temp = temp
        self.logs = logs or temp / "logs"
        self._configuration = configuration
        self._model_store = model_store
        self._models = models
        self._log_config = log_config
        self._variables = variables or {}

    def __enter__(self) -> Self:
        """Start it; it need not answer yet.

        Raises:
            ServeError: there is no Java.
        """
        found = java.environment()
        self.logs.mkdir(exist_ok=True)
        flags = f"{self._configuration.get('vmargs', '')} {NO_FILES}".strip()
        config = self.temp / "config.properties"
        settings.write({**self._configuration, "vmargs": flags}, config)
        command = [sys.executable, *STARTED_BY, "--model-store", str(self._model_store)]
        command += ["--ts-config", str(config)]
        if self._log_config is not None:
            command += ["--log-config", str(self._log_config)]
        if self._models:
            command += ["--models", *self._models]
        lock = hold(self.temp)  # the server's own, should this process be killed
        try:
            with _undisturbed(), (self.temp / "stdout.log").open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603  our own command
                    command,
                    cwd=self.temp,
                    env={
                        **os.environ,
                        **found,
                        # TorchServe calls torchrun by its name.
                        "PATH": os.pathsep.join(filter(None, (os.environ.get("PATH"), BINARIES))),
                        "TEMP": str(self.temp),
                        "TMPDIR": str(self.temp),
                        "LOG_LOCATION": str(self.logs),
                        "METRICS_LOCATION": str(self.logs),
                        **self._variables,
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        except BaseException:
            if hasattr(self, "_process"):
                self.__exit__()
            raise
        finally:
            os.close(lock)
        return self

    def __exit__(self, *_: object) -> None:
        with _undisturbed():
            told: dict[int, psutil.Process] = {}
            end = time.monotonic() + END_SECONDS
            while running := self.processes():
                # The launcher last: it takes Java's exit status, so that no zombie is left.
                others = [process for process in running if process.pid != self._process.pid]
                for process in others or running:
                    with suppress(psutil.NoSuchProcess):
                        if time.monotonic() > end:
                            process.kill()
                        elif process.pid not in told:
                            process.terminate()
                    told[process.pid] = process
                time.sleep(0.05)
                self._process.poll()
            self._process.wait()
            # An orphan is there until the system's first process has taken its exit status.
            psutil.wait_procs(told.values(), timeout=ORPHAN_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Wait until it ends by itself."""
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """Every process of it that runs: the launcher, Java and the workers, orphaned ones too."""
        return list(_session(self._process.pid))

    def log(self) -> str:
        """What the workers printed."""
        path = self.logs / "model_log.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def said(self) -> str:
        """What it printed itself that tells why it ended: one line, without Java's stacks."""
        text = (self.temp / "stdout.log").read_text(encoding="utf-8", errors="replace")
        if OLD_JAVA in text:
            return f"this Java is too old for TorchServe, which needs 17; {java.INSTALL}"
        told = (
            line.strip()
            for line in text.splitlines()
            if FAULT.search(line) and not STACK.match(line) and WORKERS not in line
        )
        return next(told, "it was killed, or printed no reason")


@contextmanager
def temporary(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that this user alone can read, gone again whatever happens.

    What a server left that was killed outright goes once its processes have ended.

    Args:
        parent: where; the usual place when not given, unless a socket's path would be too long.

    Raises:
        ServeError: none can be made there.
    """
    made, lock = _make_temporary(parent)
    try:
        yield made
    finally:
        with _undisturbed():
            shutil.rmtree(made, ignore_errors=True)
            os.close(lock)


def _make_temporary(parent: Path | None) -> tuple[Path, int]:
    try:
        usual = Path(tempfile.gettempdir())
    except FileNotFoundError:  # none that this user may write into
        usual = SHORT
    for place in (usual, SHORT) if parent is None else (parent,):
        try:
            made, lock = make_folder(place.resolve(), PREFIX)
        except OSError as error:
            message = f"--folder: {place} cannot hold a folder: {error.strerror}; give another one"
            raise ServeError(message) from error
        if len(os.fsencode(made)) <= LONGEST_TEMP:
            return made, lock
        made.rmdir()
        os.close(lock)
    message = (
        f"--folder: {made} is {len(os.fsencode(made))} bytes long, and workers' sockets can lie in "
        f"one of at most {LONGEST_TEMP}; give a shorter one"
    )
    raise ServeError(message)


def _session(leader: int) -> Iterator[psutil.Process]:
    """The processes of a session that have not ended."""
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(pid) == leader:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a Ctrl-C wait until a block is done, so that nothing is left half started or ended."""
    waiting: list[int] = []

    def wait(number: int, _: FrameType | None) -> None:
        waiting.append(number)

    try:
        before = {number: signal.signal(number, wait) for number in STOPPING}
    except ValueError:  # not the main thread, which alone is disturbed
        yield
        return
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
        for number in waiting[:1]:
            signal.raise_signal(number)
