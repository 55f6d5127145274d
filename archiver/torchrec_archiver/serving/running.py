"""Archives served: from their paths to the first answer of each."""

import http.client
import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchrec_archiver.command_line import STARTUP_SECONDS
from torchrec_archiver.serving import JSON, recorded, settings
from torchrec_archiver.serving.archive import Model, open_all
from torchrec_archiver.serving.frontend import Frontend
from torchrec_archiver.serving.recorded import FORWARD, Recorded
from torchrec_archiver.serving.session import Session, temporary
from torchrec_handler import errors
from torchrec_handler.archive.trust import TRUSTED_KEYS
from torchrec_handler.errors import ServeError

POLL_SECONDS = 0.1
LONGEST_CALL_SECONDS = 660
"""As long as TorchServe gives a worker to start, and some more."""

LONGEST_LINE = 4000
"""Of a body in a line for a shell; a longer one is put into a file."""

KEYS = "key_file.json"
"""Where TorchServe writes its tokens, in the folder where it starts."""

DIED = ("Backend worker process died.", "Failed to load model ")
STARTED = "Listening on "
"""Each worker says it once, and where; a second time when it was started again."""
RAISED = re.compile(r"(?:\w+\.)*(\w+): (\S.*)")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model that answers."""

    model: Model
    path: str
    """Of its predictions."""
    curl: str
    """The line that asks it; empty where it has no recorded samples."""
    answer: str
    """What it answered."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers."""

    frontend: Session
    url: str
    """Of its inference API."""
    asked: Sequence[Asked]
    headers: Mapping[str, str]
    """What requests have to carry: a token, where it wants one."""
    ports: Mapping[str, int]
    """By what they are for."""
    seconds: float
    """From the call to the last model's first answer."""


@contextmanager
def running(  # noqa: PLR0913  what a server may be given
    archives: Sequence[Path],
    *,
    ports: Mapping[str, int],
    config: Path = settings.CONFIG,
    workers: int | None = None,
    folder: Path | None = None,
    keys: Sequence[Path] = (),
    seconds: float = STARTUP_SECONDS,
) -> Iterator[Running]:
    """Serve archives inside of a block, and leave nothing behind.

    Args:
        archives: .mar or .tar.gz files or folders.
        ports: by their options, in the place of those that `config` names.
        config: a config.properties.
        workers: of each model; as its archive says when not given.
        folder: where the temporary folder is made.
        keys: public keys, of which one has to have signed each archive, here and in every worker.
        seconds: how long a model may take to load.

    Raises:
        ArchiveError: an archive is damaged, of another format, not there, or none of the keys
            signed it.
        ServeError: no Java, a port in use, a model that does not load, or TorchServe ended.
    """
    began = time.monotonic()
    given = settings.with_ports(settings.read(config), ports)
    settings.check_free(given)
    places = {one.opens: settings.place(given, one) for one in settings.PORTS}
    with temporary(folder) as temp:
        models = open_all(archives, temp / "archives", keys)
        store = temp / "model_store"
        store.mkdir()
        loaded = [f"{model.name}={model.folder}" for model in models]
        trusted = {TRUSTED_KEYS: os.pathsep.join(map(str, keys))} if keys else {}
        with Frontend(given, temp, model_store=store, models=loaded, variables=trusted) as frontend:
            waiting = _Waiting(frontend, places["management"].url, places["inference"].url)
            asked = [waiting.ask(model, workers, models, seconds) for model in models]
            yield Running(
                frontend=frontend,
                url=places["inference"].url,
                asked=asked,
                headers=waiting.headers("inference"),
                ports={name: place.port for name, place in places.items()},
                seconds=time.monotonic() - began,
            )


def call(
    url: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """One call of a server: status and body.

    Raises:
        OSError: there is no server, or no answer.
    """
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=LONGEST_CALL_SECONDS)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from error
    finally:
        connection.close()


class _Waiting:
    """Waits for models, as long as nothing went wrong."""

    def __init__(self, frontend: Frontend, management: str, inference: str) -> None:
        self._frontend = frontend
        self._management = management
        self._inference = inference

    def ask(
        self, model: Model, workers: int | None, models: Sequence[Model], seconds: float
    ) -> Asked:
        """Wait until a model's workers are ready, and ask it.

        Raises:
            ServeError: it is not loaded, or does not answer.
        """
        path = f"/models/{model.name}/{model.version}"
        end = time.monotonic() + seconds
        while not self._is_ready(path):
            self._check(model)
            if time.monotonic() > end:
                message = (
                    f"{model} was not loaded within {seconds:g} s, and its worker said no word"
                )
                raise ServeError(message, hint="--startup-timeout gives it longer")
            time.sleep(POLL_SECONDS)
        if workers is not None:
            scale = f"{path}?min_worker={workers}&max_worker={workers}&synchronous=true"
            self._call(model, self._management, "PUT", scale, self.headers("management"))
        has_versions = sum(one.name == model.name for one in models) > 1
        path = f"/predictions/{model.name}" + (f"/{model.version}" if has_versions else "")
        samples = recorded.read(model.folder)
        if not samples or model.index is None:
            return Asked(model=model, path=path, curl="", answer="")
        body = recorded.readable(samples[0], model.index.signature)
        headers = {"Content-Type": JSON, **qualname(samples[0]), **self.headers("inference")}
        answer = self._call(model, self._inference, "POST", path, headers, body)
        file = self._frontend.temp / f"{model.name}-{model.version}.json"
        curl = curl_line(f"{self._inference}{path}", headers, body, file)
        return Asked(model=model, path=path, curl=curl, answer=answer.decode(errors="replace"))

    def headers(self, api: str) -> dict[str, str]:
        """The token that TorchServe wants in a call, where it does."""
        try:
            keys = json.loads((self._frontend.temp / KEYS).read_text(encoding="utf-8"))
            return {"Authorization": f"Bearer {keys[api]['key']}"}
        except (OSError, ValueError, KeyError):
            return {}

    def _is_ready(self, path: str) -> bool:
        try:
            status, body = call(self._management, "GET", path, headers=self.headers("management"))
            workers: list[dict[str, Any]] = json.loads(body)[0]["workers"] if status == 200 else []
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)

    def _call(  # noqa: PLR0913, PLR0917  what a call is
        self,
        model: Model,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
    ) -> bytes:
        try:
            status, answer = call(url, method, path, body, headers)
        except OSError as error:
            self._check(model)
            message = f"{model}: {method} {url}{path.partition('?')[0]}: {error}"
            raise ServeError(message) from error
        if status not in {200, 202}:
            self._check(model)
            message = f"{model}: answered {status}: {said(answer)}"
            raise ServeError(message)
        return answer

    def _check(self, model: Model) -> None:
        if self._frontend.has_ended:
            message = f"TorchServe ended before it answered: {self._frontend.said()}"
            raise ServeError(message)
        if fault := fault_of(self._frontend.log(), model):
            message = f"{model} was not loaded: {fault}"
            raise ServeError(message)


def curl_line(url: str, headers: Mapping[str, str], body: bytes, file: Path) -> str:
    """A line for a shell that sends a body, which is put into a file where it is long."""
    if len(body) > LONGEST_LINE:
        file.write_bytes(body)
        data = f"@{file}"
    else:
        data = body.decode()
    line = ["curl", url]
    for name, value in headers.items():
        line += ["-H", f"{name}: {value}"]
    return shlex.join([*line, "--data", data])


def qualname(sample: Recorded) -> dict[str, str]:
    """The header that names a sample's method, where it is not the usual one."""
    return {} if sample.qualname == FORWARD else {"X-TorchRec-Qualname": sample.qualname}


def said(answer: bytes) -> str:
    """What an answer that is no prediction says."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, LookupError, TypeError):
        return answer.decode(errors="replace")[:500]


def fault_of(log: str, model: Model) -> str:
    """Why a worker did not load a model, in its own words; empty while nothing is wrong.

    Args:
        log: what workers printed, as log4j2.xml writes it.
        model: which.
    """
    mark = f"-{model.name}_{model.version}-stdout MODEL_LOG - "
    lines = [line.partition(mark)[2] for line in log.splitlines() if mark in line]
    raised = [found for found in map(RAISED.fullmatch, lines) if found]
    for found in raised:
        kind = getattr(errors, found[1], None)
        if isinstance(kind, type) and issubclass(kind, errors.LoadError):
            return found[2]
    started = [line for line in lines if line.startswith(STARTED)]
    is_again = len(started) > len(set(started))
    if not is_again and not any(line.startswith(DIED) for line in lines):
        return ""
    faults = [found[0] for found in raised if found[1].endswith(("Error", "Exception"))]
    told = (fault for fault in faults if "RuntimeError: 500 - " not in fault)
    return next(told, "its worker died without a word")
