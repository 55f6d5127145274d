"""How each kind of server is started, where it answers, and how it is stopped."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

import psutil

from benchmarks import ROOT
from benchmarks.environments import environment, packages
from torchrec_archiver.model_config import DEFAULT_MODEL_CONFIG
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving import triton as triton_server
from torchrec_archiver.serving.repository import write_repository
from torchrec_archiver.serving.session import temporary

PEERS = ROOT / "benchmarks" / "peers"

NAME = "criteo"

BATCHING: Mapping[str, int] = {
    "batch_size": DEFAULT_MODEL_CONFIG["batchSize"],
    "max_batch_delay": DEFAULT_MODEL_CONFIG["maxBatchDelay"],
}
"""Of TorchServe's plain and do-nothing handlers: what this project's archives get."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What servers load."""

    archives: Mapping[str, Path]
    """This project's by the dense data type, each a folder of a model store."""
    checkpoint: Path
    """The float32 weights."""
    folder: Path
    """Where a server may write."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that was started; it need not answer yet."""

    address: str
    target: str
    processes: Callable[[], Sequence[psutil.Process]]
    log: Callable[[], str]


@contextmanager
def ours(material: Material, workers: int, *, dtype: str) -> Iterator[Running]:
    """TorchServe with one of this project's archives."""
    with _torchserve(material, material.archives[dtype], workers, {}, {}) as running:
        yield running


@contextmanager
def ours_triton(material: Material, workers: int, *, dtype: str) -> Iterator[Running]:
    """Triton with one of this project's archives."""
    port = free_port()
    configuration = {
        **triton_server.SETTINGS,
        "http-port": str(port),
        "allow-grpc": "false",
        "allow-metrics": "false",
    }
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with temporary() as temp:
        repository = temp / "repository"
        write_repository([material.archives[dtype]], repository, instances=workers)
        with triton_server.Triton(
            configuration, temp, repository=repository, variables=variables
        ) as server:
            yield Running(
                address=f"http://127.0.0.1:{port}",
                target=f"/v2/models/{NAME}/infer",
                processes=server.processes,
                log=server.output,
            )


@contextmanager
def handler(
    material: Material, workers: int, *, file: str, settings: Mapping[str, str]
) -> Iterator[Running]:
    """TorchServe with a handler of one file, archived by TorchServe's own tool."""
    store = material.folder / "handlers"
    store.mkdir(parents=True)
    command = [str(Path(sys.executable).with_name("torch-model-archiver"))]
    command += ["--model-name", NAME, "--version", "1.0", "--handler", str(PEERS / file)]
    command += ["--extra-files", str(material.checkpoint)]
    command += ["--archive-format", "no-archive", "--export-path", str(store)]
    subprocess.run(  # noqa: S603  our own command
        command, check=True, env={**os.environ, "TMPDIR": str(material.folder)}
    )
    with _torchserve(material, store / NAME, workers, settings, BATCHING) as running:
        yield running


@contextmanager
def _torchserve(
    material: Material,
    archive: Path,
    workers: int,
    settings: Mapping[str, str],
    model: Mapping[str, int],
) -> Iterator[Running]:
    folder = material.folder / "torchserve"
    with TorchServe(
        folder,
        settings=settings,
        model_store=archive.parent,
        environment={"PYTHONPATH": str(ROOT)},
    ) as server:
        answer = server.register(archive, **model)
        if answer.is_success and workers > 1:
            answer = server.scale(NAME, workers)
        if not answer.is_success:
            raise RuntimeError(answer.text + server.log()[-3000:])
        yield Running(
            address=str(server.inference.base_url),
            target=f"/predictions/{NAME}",
            processes=server.processes,
            log=server.log,
        )


@contextmanager
def python(
    material: Material, workers: int, *, peer: str, command: Sequence[str], target: str
) -> Iterator[Running]:
    """A server of a peer's environment; `command` gets its checkpoint, port and that folder."""
    del workers
    folder = environment(peer)
    port = free_port()
    filled = [
        part.format(checkpoint=material.checkpoint, port=port, peers=PEERS) for part in command
    ]
    variables = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        # What a server keeps for itself (Ray: a token) goes where the benchmark's files are.
        "HOME": str(material.folder),
        "BENCHMARK_CHECKPOINT": str(material.checkpoint),
        "BENTOML_HOME": str(material.folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    filled = [str(folder / "bin" / filled[0]), *filled[1:]]
    with _process(material, filled, variables) as (process, log):
        yield Running(
            address=f"http://127.0.0.1:{port}",
            target=target,
            processes=partial(family, process),
            log=log,
        )


@contextmanager
def triton(material: Material, workers: int) -> Iterator[Running]:
    """The server's binary with a repository of one model."""
    folder = environment("triton")
    wheel = packages(folder)
    server = wheel / "pytriton" / "tritonserver"
    version = material.folder / "repository" / NAME / "1"
    version.mkdir(parents=True)
    shutil.copy(PEERS / "triton_model.py", version / "model.py")
    config = Template((PEERS / "triton.pbtxt").read_text(encoding="utf-8"))
    (version.parent / "config.pbtxt").write_text(
        config.substitute(CHECKPOINT=material.checkpoint, INSTANCES=workers), encoding="utf-8"
    )
    # The backend starts the stub that lies beside it, and the wheel has one a Python version.
    backends = material.folder / "backends"
    shutil.copytree(server / "backends" / "python", backends / "python", symlinks=True)
    stubs = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(stubs / "triton_python_backend_stub", backends / "python")
    port = free_port()
    command = [str(server / "bin" / "tritonserver")]
    for option, value in {
        "model-repository": version.parent.parent,
        "backend-directory": backends,
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "log-info": "false",
        "http-thread-count": 8,
    }.items():
        command.append(f"--{option}={value}")
    libraries = [str(wheel / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    variables = {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    with _process(material, command, variables) as (process, log):
        yield Running(
            address=f"http://127.0.0.1:{port}",
            target=f"/v2/models/{NAME}/infer",
            processes=partial(family, process),
            log=log,
        )


@contextmanager
def _process(
    material: Material, command: Sequence[str], variables: Mapping[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], str]]]:
    """A process and all that it starts, ended by their ids."""
    material.folder.mkdir(parents=True, exist_ok=True)
    log = material.folder / "log.txt"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  our own command
            command, cwd=material.folder, env=environ, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process, partial(log.read_text, encoding="utf-8", errors="replace")
    finally:
        stop(process)


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """A process and all that it started and that still belong to it; empty when it has ended."""
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process with time to end its own, then whatever of them is left."""
    started = family(process)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    for left in started:
        with suppress(psutil.NoSuchProcess):
            left.terminate()
    for left in psutil.wait_procs(started, timeout=10)[1]:
        left.kill()
    process.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens to now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
