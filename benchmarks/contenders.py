"""Every server of the benchmark, in every setting."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml

from benchmarks.bodies import (
    COLUMNS,
    KSERVE_BINARY,
    KSERVE_JSON,
    NOTHING,
    OUR_KSERVE_BINARY,
    OUR_KSERVE_JSON,
    PROTOBUF,
    TABLE,
    Format,
)
from benchmarks.criteo import CriteoPredictFactory
from benchmarks.peers.stock import CONFIG, scaled_weights
from benchmarks.starting import (
    NAME,
    Material,
    Running,
    handler,
    ours,
    ours_triton,
    python,
    triton,
)
from torchrec_archiver import build_archive
from torchrec_archiver.model_config import DEFAULT_MODEL_CONFIG

DENSE_DTYPES = ("float32", "int8")

INT8_TOLERANCE = 0.02
"""Of scores with a standard deviation of 0.14; the AUC on MovieLens falls by 0.0003."""

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
        settings = {**DEFAULT_MODEL_CONFIG, "torchrec": {"kernels": {"dtype": dtype}}}
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


def _script(file: str) -> tuple[str, ...]:
    return ("python", f"{{peers}}/{file}", "{checkpoint}", "{port}")


BENTOML = ("bentoml", "serve", "bentoml_server:Model", "--working-dir", "{peers}")

CONTENDERS = (
    Contender(
        name="ours",
        title="this project",
        start=partial(ours, dtype="float32"),
        formats=(COLUMNS, PROTOBUF),
    ),
    Contender(
        name="ours-int8",
        title="this project, dense int8",
        start=partial(ours, dtype="int8"),
        formats=(COLUMNS, PROTOBUF),
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        name="ours-triton",
        title="this project under Triton",
        start=partial(ours_triton, dtype="float32"),
        formats=(OUR_KSERVE_JSON, OUR_KSERVE_BINARY),
    ),
    Contender(
        name="ours-triton-int8",
        title="this project under Triton, dense int8",
        start=partial(ours_triton, dtype="int8"),
        formats=(OUR_KSERVE_JSON, OUR_KSERVE_BINARY),
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        name="plain",
        title="TorchServe, plain handler",
        start=partial(handler, file="torchserve_plain.py", settings={}),
        formats=(COLUMNS,),
    ),
    Contender(
        name="plain-stock",
        title="TorchServe, plain handler, stock settings",
        start=partial(handler, file="torchserve_plain.py", settings=STOCK),
        formats=(COLUMNS,),
    ),
    Contender(
        name="nothing",
        title="TorchServe, do-nothing handler",
        start=partial(handler, file="torchserve_nothing.py", settings={}),
        formats=(NOTHING,),
    ),
    Contender(
        name="nothing-stock",
        title="TorchServe, do-nothing handler, stock settings",
        start=partial(handler, file="torchserve_nothing.py", settings=STOCK),
        formats=(NOTHING,),
    ),
    Contender(
        name="triton",
        peer="triton",
        title="Triton",
        start=triton,
        formats=(KSERVE_JSON, KSERVE_BINARY),
    ),
    Contender(
        name="litserve",
        peer="litserve",
        title="LitServe",
        start=partial(
            python, peer="litserve", command=_script("litserve_server.py"), target="/predict"
        ),
        formats=(COLUMNS,),
    ),
    Contender(
        name="ray",
        peer="ray",
        title="Ray Serve",
        start=partial(python, peer="ray", command=_script("ray_server.py"), target="/predict"),
        formats=(COLUMNS,),
    ),
    Contender(
        name="bentoml",
        peer="bentoml",
        title="BentoML",
        start=partial(
            python,
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
            python, peer="fastapi", command=_script("fastapi_server.py"), target="/predict"
        ),
        formats=(COLUMNS,),
    ),
    Contender(
        name="ours-int8-2",
        title="this project, dense int8, 2 workers",
        start=partial(ours, dtype="int8"),
        formats=(COLUMNS, PROTOBUF),
        workers=2,
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        name="ours-triton-int8-2",
        title="this project under Triton, dense int8, 2 instances",
        start=partial(ours_triton, dtype="int8"),
        formats=(OUR_KSERVE_JSON, OUR_KSERVE_BINARY),
        workers=2,
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        name="triton-2",
        peer="triton",
        title="Triton, 2 instances",
        start=triton,
        formats=(KSERVE_JSON, KSERVE_BINARY),
        workers=2,
    ),
)
"""In the order in which they are measured and shown."""
