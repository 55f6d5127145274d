"""Triton: found, started on a model repository, asked, ended."""

import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from torchrec_archiver.command_line import STARTUP_SECONDS
from torchrec_archiver.serving import JSON, recorded, settings
from torchrec_archiver.serving.recorded import FORWARD, Recorded
from torchrec_archiver.serving.repository import Written, tensors, write_repository
from torchrec_archiver.serving.running import POLL_SECONDS, Asked, Running, call, curl_line
from torchrec_archiver.serving.session import Session, temporary
from torchrec_handler.archive.format import Signature
from torchrec_handler.archive.trust import TRUSTED_KEYS
from torchrec_handler.errors import ServeError

COMMAND = "tritonserver"
WHEEL = "pytriton"
INSTALL = "make triton, or pip install --no-deps nvidia-pytriton==0.7.0"
"""Without what it asks for, of which its server needs none and some is older than what is here."""

NUMPY = "numpy==1.26.4"
NUMPY_FOLDER = Path(sys.prefix, "numpy-1")
"""Where `NUMPY` is, for a Triton that was built before numpy 2."""

BACKEND = ("libtriton_python.so", "triton_python_backend_utils.py")
STUB = "triton_python_backend_stub"

SETTINGS: Mapping[str, str] = {
    "http-address": "127.0.0.1",
    "grpc-address": "127.0.0.1",
    "metrics-address": "127.0.0.1",
    # An instance that has gone is loaded again, see torchrec_handler.front.triton.ending.
    "model-control-mode": "poll",
    "repository-poll-secs": "1",
    # Each model's configuration is complete; to find that out takes as long as loading it.
    "disable-auto-complete-config": "",
    "exit-timeout-secs": "5",
    "log-info": "false",
}
MEMORY = Path("/dev/shm")  # noqa: S108  where Triton keeps what it shares with its instances
CREATING = r"ERROR: Failed to create instance: (\S.*?)(?:\\n|\"|$)"
FAULT = re.compile(rf"{CREATING}|^error: (.*)|^ *what\(\): +(.*)", re.MULTILINE)
FRAME = re.compile(r"\s*(\d+# |$)")


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A Triton on this machine."""

    server: Path
    wheel: Path | None = None
    """The folder that holds all of it, where it is the wheel's."""


def find() -> Installed:
    """Find the server: on the path, else in the wheel.

    Raises:
        ServeError: there is none.
    """
    if found := shutil.which(COMMAND):
        return Installed(server=Path(found))
    spec = util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        message = f"Triton: there is no {COMMAND} on the path, and its wheel is not installed"
        raise ServeError(message, hint=INSTALL)
    wheel = Path(spec.origin).parent / COMMAND
    return Installed(server=wheel / "bin" / COMMAND, wheel=wheel)


class Triton(Session):
    """Triton on a model repository, inside of a `with` block."""

    ends_its_own = True

    def __init__(
        self,
        configuration: Mapping[str, str],
        temp: Path,
        *,
        repository: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what it is started with.

        Args:
            configuration: option -> value, `SETTINGS` and ports.
            temp: from `temporary`; one server's alone.
            repository: of models.
            variables: of its processes, beside this process's own.
        """
        super().__init__(temp)
        self._configuration = configuration
        self._repository = repository
        self._variables = variables or {}

    def __enter__(self) -> Self:
        """Start it; it need not answer yet.

        Raises:
            ServeError: there is none, or it does not run with this Python or its numpy.
        """
        installed = find()
        python = Path(sys.executable).parent
        options = {**self._configuration, "model-repository": str(self._repository)}
        variables = dict(self._variables)
        if installed.wheel is not None:
            options["backend-directory"] = str(_backends(installed.wheel, self.temp))
            libraries = [
                str(installed.wheel.parents[1] / "nvidia_pytriton.libs"),
                str(sysconfig.get_config_var("LIBDIR")),
                *filter(None, [os.environ.get("LD_LIBRARY_PATH")]),
            ]
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
            if int(metadata.version("numpy").partition(".")[0]) > 1:
                python = _python(self.temp / "python")
        variables["PATH"] = os.pathsep.join([str(python), os.environ.get("PATH", "")])
        command = [str(installed.server)]
        command += [f"--{name}={value}".removesuffix("=") for name, value in options.items()]
        command.append(f"--backend-config=python,shm-region-prefix-name={self.temp.name}-")
        self._start(command, variables)
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for left in MEMORY.glob(f"{self.temp.name}-*"):
            left.unlink(missing_ok=True)

    @property
    def logs(self) -> Path:
        """The file of what it and its instances print."""
        return self.temp / "stdout.log"

    def said(self) -> str:
        """Why a model was not loaded, in its own words, or why it ended."""
        output = self.output()
        if found := FAULT.search(output):
            return str(next(filter(None, found.groups())))
        told = (line for line in reversed(output.splitlines()) if not FRAME.match(line))
        return next(told, "it was killed, or printed no reason")


def _backends(wheel: Path, temp: Path) -> Path:
    """A folder of backends with the stub of this Python, of which the wheel has one a version."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = wheel / "python_backend_stubs" / version / STUB
    if not stub.exists():
        known = sorted(path.name for path in stub.parents[1].iterdir())
        message = f"Triton: its wheel serves Python {', '.join(known)}, and this is {version}"
        raise ServeError(message, hint="take NVIDIA's container of Triton")
    backends = temp / "backends"
    folder = backends / "python"
    folder.mkdir(parents=True)
    for file in (*(wheel / "backends" / "python" / name for name in BACKEND), stub):
        (folder / file.name).symlink_to(file)
    return backends


def _python(folder: Path) -> Path:
    """An environment with numpy 1 and, behind it, all that this one has; its folder of commands."""
    if not (NUMPY_FOLDER / "numpy").is_dir():
        message = "Triton: the wheel's python backend needs numpy 1 beside this Python's numpy 2"
        hint = f"make triton, or pip install --no-deps --target {NUMPY_FOLDER} {NUMPY}"
        raise ServeError(message, hint=hint)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = folder / "lib" / name / "site-packages"
    packages.mkdir(parents=True)
    for path in NUMPY_FOLDER.glob("numpy*"):
        (packages / path.name).symlink_to(path)
    others = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    lines = [f"import site; site.addsitedir({other!r})\n" for other in others]
    (packages / "others.pth").write_text("".join(lines), encoding="utf-8")
    real = Path(sys.executable).resolve()
    (folder / "pyvenv.cfg").write_text(f"home = {real.parent}\n", encoding="utf-8")
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(real)
    return folder / "bin"


@contextmanager
def running(  # noqa: PLR0913  what a server may be given
    archives: Sequence[Path],
    *,
    ports: Mapping[str, int],
    workers: int | None = None,
    folder: Path | None = None,
    keys: Sequence[Path] = (),
    seconds: float = STARTUP_SECONDS,
) -> Iterator[Running]:
    """Serve archives inside of a block, and leave nothing behind.

    Args:
        archives: .mar or .tar.gz files or folders.
        ports: by their options, in the place of Triton's own.
        workers: instances of each model; as its archive says when not given.
        folder: where the temporary folder is made.
        keys: public keys, of which one has to have signed each archive, here and in every instance.
        seconds: how long a model may take to load.

    Raises:
        ArchiveError: as `running` of TorchServe.
        ServeError: no Triton, a port in use, a model that does not load, or Triton ended.
    """
    began = time.monotonic()
    given = settings.with_ports(SETTINGS, ports, settings.TRITON_PORTS)
    for one in settings.TRITON_PORTS:
        given.setdefault(one.setting, str(one.number))
    settings.check_free(given, settings.TRITON_PORTS)
    places = {one.opens: settings.place(given, one) for one in settings.TRITON_PORTS}
    url = places["inference"].url
    with temporary(folder) as temp:
        repository = temp / "repository"
        written = write_repository(archives, repository, instances=workers, keys=keys)
        trusted = {TRUSTED_KEYS: os.pathsep.join(map(str, keys))} if keys else {}
        with Triton(given, temp, repository=repository, variables=trusted) as triton:
            asked = [_ask(triton, url, one, seconds) for one in written]
            yield Running(
                frontend=triton,
                url=url,
                asked=asked,
                headers={},
                ports={name: place.port for name, place in places.items()},
                seconds=time.monotonic() - began,
            )


def _ask(triton: Triton, url: str, written: Written, seconds: float) -> Asked:
    """Wait until a model is ready, and ask it.

    Raises:
        ServeError: it is not loaded, or does not answer.
    """
    model = written.model
    path = f"/v2/models/{model.name}/versions/{written.place.name}"
    end = time.monotonic() + seconds
    while not _is_ready(url, path):
        if triton.has_ended:
            message = f"Triton ended before {model} was loaded: {triton.said()}"
            raise ServeError(message)
        if time.monotonic() > end:
            message = f"{model} was not loaded within {seconds:g} s, and Triton said no word"
            raise ServeError(message, hint="--startup-timeout gives it longer")
        time.sleep(POLL_SECONDS)
    path += "/infer"
    samples = recorded.read(written.archive)
    if not samples or model.index is None:
        return Asked(model=model, path=path, curl="", answer="")
    body = request(samples[0], model.index.signature)
    headers = {"Content-Type": JSON}
    try:
        status, answer = call(url, "POST", path, body, headers)
    except OSError as error:
        message = f"{model}: POST {url}{path}: {error}"
        raise ServeError(message) from error
    if status != 200:
        message = f"{model}: answered {status}: {answer.decode(errors='replace')[:500]}"
        raise ServeError(message)
    curl = curl_line(f"{url}{path}", headers, body, triton.temp / f"{model.name}.json")
    return Asked(model=model, path=path, curl=curl, answer=answer.decode(errors="replace"))


def request(sample: Recorded, signature: Signature) -> bytes:
    """A body of a sample's first row, its tensors with a first axis of 1."""
    one = recorded.take(sample.inputs, sample.rows, np.zeros(1, dtype=np.int64))
    given = [
        {
            "name": name,
            "shape": [1, *one[name].shape],
            "datatype": kind.removeprefix("TYPE_"),
            "data": np.ascontiguousarray(one[name]).reshape(-1),
        }
        for name, kind, _ in tensors(signature)
    ]
    document: dict[str, Any] = {"inputs": given}
    if sample.qualname != FORWARD:
        document["parameters"] = {"qualname": sample.qualname}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _is_ready(url: str, path: str) -> bool:
    try:
        status, _ = call(url, "GET", f"{path}/ready")
    except OSError:
        return False
    return status == 200
