"""Every server of the benchmark: how it is started, where it answers, how it is stopped."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

import psutil
import torch
import yaml

from benchmarks import ROOT
from benchmarks.bodies import (
    COLUMNS,
    KSERVE_BINARY,
    KSERVE_JSON,
    NOTHING,
    PROTOBUF,
    TABLE,
    Format,
)
from benchmarks.criteo import CriteoPredictFactory
from benchmarks.environments import environment, packages
from benchmarks.peers.stock import CONFIG, scaled_weights
from torchrec_archiver import build_archive
from torchrec_archiver.model_config import DEFAULT_MODEL_CONFIG
from torchrec_archiver.server import TorchServe

PEERS = ROOT / "benchmarks" / "peers"
NAME = "criteo"
DENSE_DTYPES = ("float32", "int8")
INT8_TOLERANCE = 0.02
"""Of scores with a standard deviation of 0.14; the AUC on MovieLens falls by 0.0003."""
BATCHING: Mapping[str, int] = {
    "batch_size": DEFAULT_MODEL_CONFIG["batchSize"],
    "max_batch_delay": DEFAULT_MODEL_CONFIG["maxBatchDelay"],
}
"""Of TorchServe's plain and do-nothing handlers: what this project's archives get."""
STOCK: Mapping[str, str] = {
    "decode_input_request": "true",
    "max_request_size": "6553500",
    "max_response_size": "6553500",
    "job_queue_size": "100",
    "metrics_mode": "log",
    "async_logging": "false",
    "vmargs": "",
}
"""TorchServe's defaults of all that model_store/config.properties sets, addresses apart."""


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


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One server in one setting."""

    name: str
    """What `--only` takes."""
    title: str
    start: Callable[[Material, int], AbstractContextManager[Running]]
    """Starts it with a number of workers; stops it at the end."""
    formats: tuple[Format, ...]
    workers: int = 1
    tolerance: float = 1e-4
    """How much its scores may differ from those of TorchRec's own quantized module."""
    peer: str | None = None
    """Whose environment it needs, beside this project's own."""


def make_material(folder: Path) -> Material:
    """Write the weights and build this project's archives of them."""
    weights = scaled_weights()
    checkpoint = folder / "checkpoint.pt"
    torch.save(weights, checkpoint)
    archives = {}
    for dtype in DENSE_DTYPES:
        store = folder / f"store-{dtype}"
        store.mkdir(exist_ok=True)
        config = store.with_suffix(".yaml")
        # The archiver's own settings, and the data type.
        settings = {**DEFAULT_MODEL_CONFIG, "torchrec": {"dense": {"dtype": dtype}}}
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        archives[dtype] = build_archive(
            model_name=NAME,
            version="1.0",
            factory=CriteoPredictFactory,
            configs={"config.pkl": CONFIG},
            weights=weights,
            export_path=store,
            config_file=config,
            archive_format="no-archive",
            force=True,
        )
    return Material(archives=archives, checkpoint=checkpoint, folder=folder / "server")


@contextmanager
def _ours(material: Material, workers: int, *, dtype: str) -> Iterator[Running]:
    with _torchserve(material, material.archives[dtype], workers, {}, {}) as running:
        yield running


@contextmanager
def _handler(
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
def _python(
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
def _triton(material: Material, workers: int) -> Iterator[Running]:
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


def _script(file: str) -> tuple[str, ...]:
    return ("python", f"{{peers}}/{file}", "{checkpoint}", "{port}")


BENTOML = ("bentoml", "serve", "bentoml_server:Model", "--working-dir", "{peers}")

CONTENDERS = (
    Contender(
        name="ours",
        title="this project",
        start=partial(_ours, dtype="float32"),
        formats=(COLUMNS, PROTOBUF),
    ),
    Contender(
        name="ours-int8",
        title="this project, dense int8",
        start=partial(_ours, dtype="int8"),
        formats=(COLUMNS, PROTOBUF),
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        name="plain",
        title="TorchServe, plain handler",
        start=partial(_handler, file="torchserve_plain.py", settings={}),
        formats=(COLUMNS,),
    ),
    Contender(
        name="plain-stock",
        title="TorchServe, plain handler, stock settings",
        start=partial(_handler, file="torchserve_plain.py", settings=STOCK),
        formats=(COLUMNS,),
    ),
    Contender(
        name="nothing",
        title="TorchServe, do-nothing handler",
        start=partial(_handler, file="torchserve_nothing.py", settings={}),
        formats=(NOTHING,),
    ),
    Contender(
        name="nothing-stock",
        title="TorchServe, do-nothing handler, stock settings",
        start=partial(_handler, file="torchserve_nothing.py", settings=STOCK),
        formats=(NOTHING,),
    ),
    Contender(
        name="triton",
        peer="triton",
        title="Triton",
        start=_triton,
        formats=(KSERVE_JSON, KSERVE_BINARY),
    ),
    Contender(
        name="litserve",
        peer="litserve",
        title="LitServe",
        start=partial(
            _python, peer="litserve", command=_script("litserve_server.py"), target="/predict"
        ),
        formats=(COLUMNS,),
    ),
    Contender(
        name="ray",
        peer="ray",
        title="Ray Serve",
        start=partial(_python, peer="ray", command=_script("ray_server.py"), target="/predict"),
        formats=(COLUMNS,),
    ),
    Contender(
        name="bentoml",
        peer="bentoml",
        title="BentoML",
        start=partial(
            _python,
            peer="bentoml",
            command=(*BENTOML, "--host", "127.0.0.1", "--port", "{port}"),
            target="/predict",
        ),
        formats=(TABLE,),
    ),
    Contender(
        name="fastapi",
        peer="fastapi",
        title="FastAPI",
        start=partial(
            _python, peer="fastapi", command=_script("fastapi_server.py"), target="/predict"
        ),
        formats=(COLUMNS,),
    ),
    Contender(
        name="ours-int8-2",
        title="this project, dense int8, 2 workers",
        start=partial(_ours, dtype="int8"),
        formats=(COLUMNS, PROTOBUF),
        workers=2,
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        name="triton-2",
        peer="triton",
        title="Triton, 2 instances",
        start=_triton,
        formats=(KSERVE_JSON, KSERVE_BINARY),
        workers=2,
    ),
)
"""In the order in which they are measured and shown."""
