"""BentoML with adaptive batching, which takes one array whose first axis is the rows."""

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType, Shape

from benchmarks.criteo import DENSE_FEATURES
from benchmarks.peers.stock import FEATURES, Inputs, StockModel

CHECKPOINT = "BENCHMARK_CHECKPOINT"
"""The environment variable that names the checkpoint: `bentoml serve` makes the service itself."""

Rows = Annotated[np.ndarray, DType("float32"), Shape((-1, DENSE_FEATURES + 2 * FEATURES))]


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 60, "max_concurrency": 256},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Model:
    """One worker."""

    def __init__(self) -> None:
        self._model = StockModel(Path(os.environ[CHECKPOINT]))

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=1024, max_latency_ms=10_000)
    def predict(self, rows: Rows) -> np.ndarray:
        """Score rows of 13 numbers, 26 lengths and as many ids, one or none a feature."""
        dense, lengths, values = np.split(rows, [DENSE_FEATURES, DENSE_FEATURES + FEATURES], axis=1)
        lengths = lengths.T
        return self._model(
            Inputs(
                dense=np.ascontiguousarray(dense),
                lengths=lengths.reshape(-1).astype(np.int32),
                values=values.T[lengths > 0].astype(np.int32),
            )
        )
