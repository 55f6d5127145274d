"""A TorchServe on free ports, to be asked and told by programs, gone when its block ends.

Needs httpx beside what serving needs, so nothing that builds or serves imports it.
"""

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from torchrec_archiver.serving import settings as shipped
from torchrec_archiver.serving.frontend import Frontend
from torchrec_archiver.serving.session import temporary

START_SECONDS = 60
LOG_SECONDS = 30


class TorchServe:
    """A server on free ports of 127.0.0.1 with the model API enabled, inside of a `with` block.

    Args:
        folder: where its logs are written.
        settings: of config.properties, before those that are shipped; with `vmargs` in them they
            say where logging is configured.
        model_store: where archives are read from, `folder / "model_store"` when not given.
        environment: variables of the server's processes, beside this process's own.

    Raises:
        RuntimeError: on entering, it does not answer within a minute; with what it printed.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        model_store: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.model_store = model_store or folder / "model_store"
        self.logs = folder / "logs"
        given = settings or {}
        self._log_config = None if "vmargs" in given else shipped.LOG_CONFIG
        self._environment = environment or {}
        # Its own calls carry no token.
        own = {"enable_model_api": "true", "disable_token_authorization": "true"}
        usual = shipped.with_ports(shipped.read(shipped.CONFIG), shipped.free_ports())
        self._settings = {**usual, **own, **given}
        inference, management, metrics, grpc, _ = (
            shipped.place(usual, port) for port in shipped.PORTS
        )
        self.grpc_address = f"{grpc.host}:{grpc.port}"
        self.inference = httpx.Client(base_url=inference.url, timeout=120)
        self.management = httpx.Client(base_url=management.url, timeout=120)
        self.metrics = httpx.Client(base_url=metrics.url, timeout=120)

    def __enter__(self) -> Self:
        for path in (self.model_store, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for client in (self.inference, self.management, self.metrics):
                stack.callback(client.close)
            # Not in `folder`, whose path may be too long for a socket's.
            self.temp = stack.enter_context(temporary())
            self._frontend = stack.enter_context(
                Frontend(
                    self._settings,
                    self.temp,
                    model_store=self.model_store,
                    log_config=self._log_config,
                    logs=self.logs,
                    variables=self._environment,
                )
            )
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def register(self, archive: Path, **parameters: str | int) -> httpx.Response:
        """Load an archive and wait until its worker is ready or has failed."""
        stored = self.model_store / archive.name
        if not stored.exists():
            copy = shutil.copytree if archive.is_dir() else shutil.copy
            copy(archive, stored)
        given = {"url": archive.name, "initial_workers": 1, "synchronous": "true", **parameters}
        return self.management.post("/models", params=given)

    def scale(self, name: str, workers: int) -> httpx.Response:
        """Wait until a model has so many workers and all are ready, or one has failed."""
        given: dict[str, str | int] = {"min_worker": workers, "max_worker": workers}
        return self.management.put(f"/models/{name}", params={**given, "synchronous": "true"})

    def unregister(self, name: str) -> None:
        """Remove a model; what was registered is still in the model store."""
        self.management.delete(f"/models/{name}")

    def predict(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        qualname: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Ask over HTTP: a mapping goes as JSON, bytes as they are."""
        given = dict(headers or {})
        if qualname:
            given["X-TorchRec-Qualname"] = qualname
        if isinstance(body, bytes):
            return self.inference.post(f"/predictions/{name}", content=body, headers=given)
        return self.inference.post(f"/predictions/{name}", json=body, headers=given)

    def workers(self, name: str) -> list[dict[str, Any]]:
        """What the management API says of a model's workers: `pid`, `status` and more."""
        workers: list[dict[str, Any]] = self.management.get(f"/models/{name}").json()[0]["workers"]
        return workers

    def processes(self) -> list[psutil.Process]:
        """Every process of the server: the launcher, Java and the workers; none once it ended."""
        return self._frontend.processes()

    def log(self) -> str:
        """What the workers printed."""
        return self._frontend.log()

    def logs_soon(self, text: str) -> bool:
        """Whether the workers' log has a text, or gets it: TorchServe writes it some time later."""
        end = time.monotonic() + LOG_SECONDS
        while not (found := text in self.log()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and not self._frontend.has_ended:
            with suppress(httpx.TransportError):
                if self.management.get("/models").is_success:
                    return
            time.sleep(0.2)
        message = f"TorchServe did not start within {START_SECONDS} s: {self._frontend.said()}"
        raise RuntimeError(message)
