"""Ranks on a further machine: torchrun on the handler's follower, again whenever it ends."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchrec_archiver.serving.archive import open_all
from torchrec_archiver.serving.session import temporary
from torchrec_handler.archive.trust import TRUSTED_KEYS

FOLLOWER = "torchrec_handler.front.follow"
FIRST_PORT = 29500
"""TorchServe's of the first model with ranks, which is a part of the name of their rendezvous."""
PAUSE_SECONDS = 1.0
"""Between two groups."""
STOP_SECONDS = 20.0
"""In which torchrun ends its ranks."""
MOST_KEPT = 200
SAID, FAULT = "FOLLOW ", "ERROR: "
"""How a follower's lines begin that are to be shown, and in which it says why it ends."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where and as what to join, in torchrun's words."""

    endpoint: str
    """HOST:PORT of the machine that has the server."""
    nnodes: int
    node_rank: int
    nproc_per_node: int = 1
    rdzv_id: str | None = None
    """None: what TorchServe calls the first model with ranks of a server."""


def join(
    archive: Path,
    rendezvous: Rendezvous,
    keys: Sequence[Path] = (),
    *,
    folder: Path | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Follow the ranks of another machine until interrupted; whenever they end, join them again.

    Args:
        archive: the same that the other machine serves.
        rendezvous: where they meet.
        keys: public keys, of which one has to have signed it.
        folder: where a temporary folder is made that holds what is unpacked.
        tell: is given a line whenever something happens.

    Raises:
        ArchiveError, LoadError, ServeError: see `open_all`.
    """
    with temporary(folder) as scratch:
        (model,) = open_all([archive], scratch, keys)
        command = _command(model.folder, model.name, rendezvous)
        # As TorchServe's: the package's own modules are found in the archive's folder.
        paths = [str(model.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"PYTHONPATH": os.pathsep.join(paths)}
        if keys:
            variables[TRUSTED_KEYS] = os.pathsep.join(map(str, keys))
        tell(
            f"Joining {rendezvous.endpoint} as machine {rendezvous.node_rank} of "
            f"{rendezvous.nnodes}, with {model}; Ctrl-C stops it"
        )
        while True:
            tell(f"The ranks ended ({_follow(command, variables, tell)}); joining again")
            time.sleep(PAUSE_SECONDS)


def _command(folder: Path, name: str, rendezvous: Rendezvous) -> list[str]:
    said = {
        "nnodes": rendezvous.nnodes,
        "node-rank": rendezvous.node_rank,
        "nproc-per-node": rendezvous.nproc_per_node,
        "rdzv-backend": "static",
        "rdzv-endpoint": rendezvous.endpoint,
        "rdzv-id": rendezvous.rdzv_id or f"{name}_{FIRST_PORT}",
        "max-restarts": 0,
    }
    options = [f"--{option}={value}" for option, value in said.items()]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *options),
        *("-m", FOLLOWER, str(folder)),
    ]


def _follow(command: list[str], variables: dict[str, str], tell: Callable[[str], None]) -> str:
    """Run torchrun once; gives why it ended."""
    process = subprocess.Popen(  # noqa: S603  our own command
        command,
        env={"OMP_NUM_THREADS": "1", **os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for this process, which ends that one
    )
    kept: deque[str] = deque(maxlen=MOST_KEPT)
    try:
        assert process.stdout is not None  # noqa: S101  as asked for
        for line in process.stdout:
            said = line.rstrip()
            kept.append(said)
            if said.startswith(SAID):
                tell(said.removeprefix(SAID))
        process.wait()
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
    # torchrun's own report of a rank that failed stands behind what the rank said.
    found = next((line for line in reversed(kept) if FAULT in line), None)
    return found.partition(FAULT)[2] if found else _last(kept)


def _last(kept: Sequence[str]) -> str:
    """What torchrun itself had to say, where no rank said anything."""
    return next((line for line in reversed(kept) if "Error: " in line), "without a word")
