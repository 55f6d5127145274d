"""Each peer's own virtual environment, made from its pinned list.

Python packages that this project's environment has in the versions pinned here are shared with it
(torch, torchrec, fbgemm-gpu, numpy): a `.pth` file puts them behind the peer's own, so a peer that
pins another version of something gets its own. The repository's root is added in the same way, for
`benchmarks.peers`: Triton's python backend reads no PYTHONPATH.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks import ROOT

LISTS = ROOT / "requirements" / "peers"
FOLDER = ROOT / "build" / "bench" / "environments"


def environment(name: str) -> Path:
    """Make the environment of `requirements/peers/NAME.txt` unless it is there.

    Returns:
        Its folder; its Python is `bin/python`.

    Raises:
        RuntimeError: it could not be installed; the message is pip's.
    """
    wanted = (LISTS / f"{name}.txt").read_text(encoding="utf-8")
    folder = FOLDER / name
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return folder
    venv.create(folder, clear=True, symlinks=True)
    shared = packages(folder) / "shared.pth"
    shared.write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    command += ["--quiet", "--no-deps", "--requirement", str(LISTS / f"{name}.txt")]
    done = subprocess.run(  # noqa: S603  our own command
        command, check=False, capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    stamp.write_text(wanted, encoding="utf-8")
    return folder


def packages(folder: Path) -> Path:
    """The environment's site-packages."""
    variables = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))
