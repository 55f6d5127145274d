"""`torchrec-archiver serve`: one command, from another folder, as another user; what it leaves."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.archives import good
from torchrec_archiver.serving.settings import free_ports
from torchrec_handler.archive.format import TABLES

SCRIPT = Path(sys.executable).with_name("torchrec-archiver")
NOBODY = 65534
# Reads what root may read, as Python itself may lie in root's home, and writes what nobody may.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
SECONDS = 120


@contextmanager
def serving(*arguments: str | Path, user: list[str]) -> Iterator["subprocess.Popen[str]"]:
    ports = [part for option, port in free_ports().items() for part in (option, str(port))]
    process = subprocess.Popen(
        [*user, str(SCRIPT), "serve", *map(str, arguments), *ports],
        cwd="/",
        env={**os.environ, "HOME": "/nonexistent"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def read_until(process: "subprocess.Popen[str]", last: str) -> str:
    assert process.stdout
    assert process.stderr
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(last):
            return "".join(lines)
    raise AssertionError("".join(lines) + process.stderr.read())


def test_another_user_serves_from_another_folder_and_ctrl_c_leaves_nothing(
    movielens_archive: Path, short_folder: Path
) -> None:
    user = AS_NOBODY if os.geteuid() == 0 and shutil.which("setpriv") else []
    with serving(movielens_archive, "--folder", short_folder, user=user) as process:
        shown = read_until(process, "Ctrl-C")
        found = re.search(
            r"^curl .*http://127\.0\.0\.1:(\d+)/predictions/movielens.*", shown, re.MULTILINE
        )
        assert found, shown
        done = subprocess.run(
            ["bash", "-c", f"{found[0]} --fail -sS"],  # noqa: S607  as a person would
            check=True,
            capture_output=True,
            text=True,
        )
        assert 0 < json.loads(done.stdout)["default"][0] < 1
        assert f"movielens 1.0 answers {done.stdout}; ask it again:" in shown
        family = psutil.Process(process.pid).children(recursive=True)
        assert {"java"} < {one.name() for one in family}
        assert not user or {one.uids().real for one in family} == {NOBODY}
        again = subprocess.run(
            [SCRIPT, "serve", movielens_archive, "--port", found[1]],
            check=False,
            capture_output=True,
            text=True,
        )
        assert again.returncode == 1
        assert again.stderr == (
            f"ERROR: port {found[1]} (inference, inference_address): Address already in use; "
            "stop what listens there, or give another one with --port\n"
        )
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, rest, errors) == (0, "Stopped; nothing is left of it\n", "")
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert not list(short_folder.iterdir())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found[1])))


def test_a_model_that_does_not_load_and_a_frontend_that_is_killed_are_one_line(
    movielens_archive: Path, tmp_path: Path, short_folder: Path
) -> None:
    """What is checked by replaying samples alone is found by the worker."""
    good.unpack(movielens_archive, tmp_path / "movielens")
    tables = tmp_path / "movielens" / TABLES
    tables.write_bytes(bytes(byte ^ 0x55 for byte in tables.read_bytes()))
    with serving(tmp_path / "movielens", "--folder", short_folder, user=[]) as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert re.fullmatch(r"ERROR: movielens 1\.0 was not loaded: self-test: forward, .*\n", errors)
    with serving(movielens_archive, "--folder", short_folder, user=[]) as process:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            family = psutil.Process(process.pid).children(recursive=True)
            if java := [one for one in family if one.name() == "java"]:
                break
            time.sleep(0.05)
        java[0].kill()
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (
        1,
        "ERROR: TorchServe ended before it answered: it was killed, or printed no reason\n",
    )
    assert not list(short_folder.iterdir())
