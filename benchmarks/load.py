"""Load from wrk, a process of its own, and what it says."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one load gave."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int
    """Answers other than 2xx, and requests without an answer."""


def wrk() -> str:
    """Where wrk is.

    Raises:
        RuntimeError: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        message = "wrk: not found, expected it on the PATH; install it with: apt-get install wrk"
        raise RuntimeError(message)
    return found


def load(address: str, requests: Path, *, connections: int, seconds: float) -> Figures:
    """Send requests for some seconds, each connection one at a time, from one thread.

    Args:
        address: scheme, host and port.
        requests: what `bodies.write_http` wrote.
        connections: how many.
        seconds: rounded up to a whole number, which is what wrk takes.

    Raises:
        RuntimeError: wrk failed.
    """
    command = [wrk(), "--threads", "1", "--connections", str(connections)]
    command += ["--duration", f"{-int(-seconds // 1)}s", "--timeout", "30s"]
    command += ["--script", str(SCRIPT), address, "--", str(requests)]
    done = subprocess.run(  # noqa: S603  our own command
        command, check=False, capture_output=True, text=True, timeout=seconds + 60
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines or not lines[-1].startswith("{"):
        message = f"wrk ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        raise RuntimeError(message)
    said = json.loads(lines[-1])
    return Figures(
        requests_per_second=said["requests"] / said["seconds"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        max_ms=said["max_ms"],
        errors=said["bad_status"] + said["broken"],
    )
