"""A delta of somewhere else put into its folder, and waited for until it is served."""

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrec_archiver.deltas.base import Base
from torchrec_archiver.deltas.writing import PREFIX, put
from torchrec_archiver.locked import locked_folder
from torchrec_handler.archive.delta import (
    check_delta,
    check_signed,
    list_deltas,
    read_delta,
    read_head,
    signature_of,
)
from torchrec_handler.errors import BuildError, DeltaError

POLL_SECONDS = 0.05
ANSWER_SECONDS = 10.0
REFUSED = ".refused"
"""Behind the name of a delta that a server refused."""


def apply_delta(path: Path, base: Base, folder: Path, keys: Sequence[Path] = ()) -> Path:
    """Check a delta as a server does, and publish it.

    One that is in the folder already stays as it is.

    Args:
        path: the delta, with its signature beside it if it has one.
        base: the archive.
        folder: where deltas are published.
        keys: public keys, of which one has to have signed it; none where it needs no signature.

    Returns:
        Its path in the folder.

    Raises:
        DeltaError: a server would refuse it, or there is another of its generation.
        BuildError: the folder cannot be written to.
    """
    if keys:
        check_signed(path, keys)
    delta = read_delta(path)
    if delta.head.base != base.digest:
        message = (
            f"{path.name}: was made for the archive {delta.head.base[:16]}…, this is "
            f"{base.digest[:16]}…"
        )
        raise DeltaError(message, reason="base")
    check_delta(delta, base.index, base.dense)
    if not folder.is_dir():
        message = f"folder: {folder} is not a folder; make it first"
        raise BuildError(message)
    there = folder / path.name
    if there.exists() and read_head(there) == delta.head:
        return there
    with locked_folder(folder, PREFIX) as staging:
        staged = staging / path.name
        shutil.copyfile(path, staged)
        if signature_of(path).exists():
            shutil.copyfile(signature_of(path), signature_of(staged))
        return put([staged], folder)[0]


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a model is served."""

    management: str
    """Address of the management API."""
    model: str

    def sequence(self) -> int:
        """The generation that the worker which answers serves.

        Raises:
            BuildError: the server does not answer, or follows no deltas.
        """
        url = f"{self.management.rstrip('/')}/models/{self.model}?customized=true"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                told = json.loads(answer.read())[0]["customizedMetadata"]
            served = json.loads(told) if isinstance(told, str) else told
            return int(served["served"]["updates"]["sequence"])
        except urllib.error.HTTPError as error:
            message = f"{self.management}: answered {error.code} for the model {self.model}"
            raise BuildError(message) from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            message = f"{self.management}: does not answer ({reason})"
            raise BuildError(message) from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            message = (
                f"{self.management}: the model {self.model} follows no deltas; set "
                "torchrec.updates.folder in its model-config.yaml"
            )
            raise BuildError(message) from error


def wait_served(path: Path, server: Server, seconds: float) -> float:
    """Wait until a delta of the folder is served.

    Returns:
        How many seconds that took.

    Raises:
        BuildError: it is not within the time, is refused, or the server does not answer.
    """
    wanted = read_head(path).sequence
    began = time.monotonic()
    while (found := server.sequence()) < wanted:
        if path.with_name(path.name + REFUSED).exists():
            message = f"{path.name}: the server refused it; logs/model_log.log says why"
            raise BuildError(message)
        if time.monotonic() - began > seconds:
            message = f"{path.name}: after {seconds:g} s generation {found} is served"
            heads = [read_head(other) for other in list_deltas(path.parent)]
            if not any(head.from_sequence <= found + 1 <= head.sequence for head in heads):
                message += f"; generation {found + 1} is missing from {path.parent}"
            raise BuildError(message)
        time.sleep(POLL_SECONDS)
    return time.monotonic() - began
