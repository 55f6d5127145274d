"""A new version of a model in the place of the old one, on a running TorchServe, under load.

TorchServe's own steps, by its management API, in an order in which no request is lost: its DELETE
drops what a version's worker still holds, so the old version goes when nothing is left of it.
"""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_archiver.store import read_name_and_version
from torchrec_handler.errors import BuildError

POLL_SECONDS = 0.2
IDLE_SECONDS = 1.0
"""How long nobody may have waited for the old version before it goes: a request that asked for the
default just before it changed is in the old one's queue by then."""
ANSWER_SECONDS = 30.0
"""Of calls that TorchServe answers at once."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Swap:
    """What became of it."""

    name: str
    version: str
    replaced: str | None
    """The version that answered before, and has gone; None where there was none."""
    seconds: float


def swap(archive: Path, management: str, seconds: float, say: Say) -> Swap:
    """Let an archive of the server's model store answer for its model.

    Args:
        archive: a .mar, a .tar.gz or a folder; the server has one of that name in its model store.
        management: address of the management API.
        seconds: how long workers may take to load, and the old version to finish.
        say: is told of each step.

    Raises:
        BuildError: the server does not answer, or refuses; the new version is not ready, and the
            old one answers on; the old one is not idle, and both are there.
    """
    began = time.monotonic()
    held = read_name_and_version(archive)
    if held is None:
        message = f"archive: {archive} is no model archive"
        raise BuildError(message)
    name, version = held
    server = _Server(management.rstrip("/"), name)
    before = server.default()
    old = before["modelVersion"] if before else None
    if old == version:
        message = (
            f"{name}: version {version} answers already; build the archive with another --version"
        )
        raise BuildError(message)
    if version in server.versions():
        message = (
            f"{name}: version {version} is registered already, beside {old}; "
            f"remove it first: curl -X DELETE {management}/models/{name}/{version}"
        )
        raise BuildError(message)
    workers = max(1, before["minWorkers"]) if before else 1
    say(f"registering {name} {version}")
    try:
        server.register(archive.name, workers)
        server.wait_ready(version, workers, seconds)
    except BuildError as error:
        server.remove(version)
        still = f"; {old} answers on" if old else ""
        message = f"{name}: version {version} is not ready ({error}){still}"
        raise BuildError(message) from error
    server.make_default(version)
    say(f"{name} is {version} now")
    if old:
        say(f"waiting until {old} has answered all that it was asked")
        server.wait_idle(old, seconds)
        server.remove(old)
        say(f"{old} is removed")
    return Swap(name=name, version=version, replaced=old, seconds=time.monotonic() - began)


class _Server:
    """One model on a server, by the management API."""

    def __init__(self, address: str, name: str) -> None:
        self._address = address
        self._name = name

    def default(self) -> Mapping[str, Any] | None:
        """What it says of the version that answers; None where the model is not there."""
        found = self._call("GET", f"/models/{self._name}", missing=None)
        return found[0] if found else None

    def versions(self) -> list[str]:
        found = self._call("GET", f"/models/{self._name}/all", missing=[])
        return [each["modelVersion"] for each in found]

    def register(self, url: str, workers: int) -> None:
        # TorchServe would wait in a thread of its event loop, and no client whose connection has
        # that thread would be answered either.
        given = {"url": url, "initial_workers": workers, "synchronous": "false"}
        self._call("POST", f"/models?{urllib.parse.urlencode(given)}")

    def wait_ready(self, version: str, workers: int, seconds: float) -> None:
        """Wait until all workers have replayed the archive's samples.

        TorchServe starts one that fails again and again, each time as another process.
        """
        end = time.monotonic() + seconds
        seen: dict[str, int] = {}
        while True:
            (found,) = self._call("GET", f"/models/{self._name}/{version}")
            states = [worker["status"] for worker in found["workers"]]
            if states.count("READY") >= workers:
                return
            for worker in found["workers"]:
                pid = seen.setdefault(worker["id"], worker["pid"])
                if pid > 0 and worker["pid"] != pid:
                    message = "a worker could not load it; logs/model_log.log says why"
                    raise BuildError(message)
                seen[worker["id"]] = worker["pid"]
            if time.monotonic() > end:
                message = f"after {seconds:g} s its workers are {', '.join(states) or 'none'}"
                raise BuildError(message)
            time.sleep(POLL_SECONDS)

    def make_default(self, version: str) -> None:
        self._call("PUT", f"/models/{self._name}/{version}/set-default")

    def wait_idle(self, version: str, seconds: float) -> None:
        """Wait until nobody has waited for a version for a while, and its workers have answered.

        A worker answers one batch before it takes the next, so once it has told what it serves,
        it holds nothing that came before.
        """
        end = time.monotonic() + seconds
        since = time.monotonic()
        while time.monotonic() - since < IDLE_SECONDS:
            (found,) = self._call("GET", f"/models/{self._name}/{version}")
            if found["jobQueueStatus"]["pendingRequests"]:
                since = time.monotonic()
            if time.monotonic() > end:
                message = (
                    f"{self._name}: version {version} has requests still after {seconds:g} s; "
                    "both versions are registered"
                )
                raise BuildError(message)
            time.sleep(POLL_SECONDS)
        for _ in range(max(1, len(found["workers"]))):
            self._call("GET", f"/models/{self._name}/{version}?customized=true", seconds=seconds)

    def remove(self, version: str) -> None:
        self._call("DELETE", f"/models/{self._name}/{version}", missing=None)

    def _call(
        self, method: str, path: str, *, seconds: float = ANSWER_SECONDS, **missing: Any
    ) -> Any:
        """The answer's JSON; what `missing` says where there is no such model."""
        request = urllib.request.Request(f"{self._address}{path}", method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            body = error.read().decode("utf-8", "replace")
            if error.code == 404 and missing:
                return missing["missing"]
            if error.code == 405:
                message = f"{self._address}: this TorchServe takes no new models while it runs"
                hint = "start it with enable_model_api=true in its config.properties (--ts-config)"
                raise BuildError(message, hint=hint) from error
            raise BuildError(_message(body) or f"answered {error.code}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            message = (
                f"{self._address}: does not answer ({reason}); --management-address is where "
                "TorchServe's management_address is"
            )
            raise BuildError(message) from error


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())[:500]
