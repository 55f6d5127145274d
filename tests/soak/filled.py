"""A disk that is full, and builds that are killed: an archive is there whole, or not at all."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.soak import asking
from tests.soak.row import Row
from tests.support.paths import ROOT
from torchrec_archiver.server import TorchServe
from torchrec_archiver.unpack import unpack
from torchrec_handler.archive.verify import verify
from torchrec_handler.errors import ArchiveError

DISK = "64k"
FACTORY = "tests.support.factories.ranking:RankingPredictFactory"
NO_SPACE = "No space left on device"


def disk(folder: Path) -> Row:
    """Build onto a full disk, and register an archive on one."""
    built = asking.archive(folder)
    try:
        with _full(folder / "disk") as full:
            done = _build(full)
            left = [path for path in full.rglob("*") if path.is_file()]
            lines = done.stderr.decode().splitlines()
            said = next((line for line in lines if line.startswith("ERROR:")), "nothing")
            _fill(full)
            with TorchServe(folder / "server", environment={}) as server:
                registered = _register(server, built, full)
    except PermissionError:
        return Row(
            what="disk full while building, while registering",
            promise="no half archive, a clear message",
            measured="not tried: this user may not mount a small disk",
            held=True,
        )
    return Row(
        what="disk full while building, while registering",
        promise="no half archive, a clear message",
        measured=(
            f"the build said {said.replace(str(full), 'FOLDER')!r} and left {len(left)} files; "
            f"registering answered {registered}"
        ),
        held=done.returncode == 1
        and not left
        and NO_SPACE in said
        and not registered.startswith("200"),
    )


def builds(folder: Path, *, times: int = 20) -> Row:
    """Kill a build at random moments."""
    usual = min(_build_seconds(folder / name) for name in ("first", "second"))
    dice = random.Random(3)  # noqa: S311  no secret
    halves, wholes, left = 0, 0, 0
    for number in range(times):
        store = folder / f"store-{number}"
        staging = folder / f"staging-{number}"
        store.mkdir()
        staging.mkdir()
        with subprocess.Popen(
            _command(store),
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(staging)},
            start_new_session=True,
        ) as process:
            # Most of a build is importing torch.
            time.sleep(dice.uniform(0.4, 1.0) * usual)
            os.killpg(process.pid, signal.SIGKILL)
        for path in store.iterdir():
            if path.suffix != ".mar":
                left += 1
                continue
            try:
                unpacked = folder / f"unpacked-{number}"
                unpacked.mkdir()
                unpack(path, unpacked)
                verify(unpacked, full=True)
                wholes += 1
            except ArchiveError:
                halves += 1
    return Row(
        what=f"build killed at {times} random moments",
        promise="no half archive",
        measured=(
            f"{wholes} archives were whole already, {halves} half; {left} other files or "
            "folders were left in a store"
        ),
        held=not halves,
    )


def _build_seconds(store: Path) -> float:
    store.mkdir()
    began = time.monotonic()
    _build(store).check_returncode()
    return time.monotonic() - began


def _command(store: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "torchrec_archiver", "build", "--model-name", "ranking"),
        *("--version", "1.0", "--factory", FACTORY, "--export-path", str(store)),
    ]


def _build(store: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(_command(store), cwd=ROOT, capture_output=True, check=False)


def _fill(full: Path) -> None:
    with suppress(OSError), (full / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def _register(server: TorchServe, built: Path, full: Path) -> str:
    """What TorchServe says where there is no room to unpack an archive."""
    (server.temp / "models").symlink_to(full)
    answer = server.register(built)
    return f"{answer.status_code} {re.sub(chr(10), ' ', answer.text)[:200]}"


@contextmanager
def _full(folder: Path) -> Iterator[Path]:
    """A disk with no room for an archive."""
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)],  # noqa: S607
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607
