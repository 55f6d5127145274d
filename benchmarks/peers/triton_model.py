"""Triton's python backend: the model as `model.py` of a model repository."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

from benchmarks.peers.stock import Inputs, StockModel


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._model = StockModel(Path(parameters["checkpoint"]["string_value"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer what the dynamic batcher put together."""
        parts = [_read(request) for request in requests]
        whole = parts[0]
        if len(parts) > 1:
            whole = tuple(map(np.concatenate, zip(*parts, strict=True)))
        dense, lengths, values = whole
        lengths = lengths.T
        scores = self._model(
            Inputs(dense=dense, lengths=lengths.reshape(-1), values=values.T[lengths > 0])
        )
        ends = np.cumsum([len(part[0]) for part in parts])[:-1]
        return [
            backend.InferenceResponse([backend.Tensor("default", one.reshape(-1, 1))])
            for one in np.split(scores, ends)
        ]


def _read(request: Any) -> tuple[Any, Any, Any]:
    return tuple(
        backend.get_input_tensor_by_name(request, name).as_numpy()
        for name in ("float_features", "lengths", "values")
    )
