"""A server's processes: started in a folder of their own, watched, ended, none left behind."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from torchrec_archiver.locked import hold, make_folder
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


class Session(ABC):
    """A server inside of a `with` block.

    It is a session of its own, so that Ctrl-C in a terminal reaches the program that started it and
    not its workers.
    """

    ends_its_own = False
    """Whether it ends the processes that it started, and is disturbed when they end before it."""

    def __init__(self, temp: Path) -> None:
        """Take a folder from `temporary`; one server's alone."""
        self.temp = temp

    def _start(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start it, with variables beside this process's own."""
        lock = hold(self.temp)  # the server's own, should this process be killed
        try:
            with undisturbed(), (self.temp / "stdout.log").open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603  our own command
                    command,
                    cwd=self.temp,
                    env={**os.environ, **variables},
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

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            told: dict[int, psutil.Process] = {}
            end = time.monotonic() + END_SECONDS
            while running := self.processes():
                # The launcher last: it takes Java's exit status, so that no zombie is left.
                others = [process for process in running if process.pid != self._process.pid]
                leader = [process for process in running if process.pid == self._process.pid]
                for process in (leader or others) if self.ends_its_own else (others or leader):
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

    @property
    @abstractmethod
    def logs(self) -> Path:
        """Where a user finds what it logs."""

    @abstractmethod
    def said(self) -> str:
        """What it printed itself that tells why it ended: one line."""

    def output(self) -> str:
        """What it printed itself."""
        return (self.temp / "stdout.log").read_text(encoding="utf-8", errors="replace")


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
        with undisturbed():
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
def undisturbed() -> Iterator[None]:
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
