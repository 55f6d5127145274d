"""A handler in the style of TorchServe's own DLRM example: one class, preprocess to postprocess."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ts.torch_handler.base_handler import BaseHandler

from benchmarks.peers.stock import Inputs, StockModel, score


class PlainHandler(BaseHandler):
    """What a user of TorchServe would write."""

    def initialize(self, context: Any) -> None:
        """Load the model from the archive's extra file."""
        folder = Path(context.system_properties["model_dir"])
        self.model = StockModel(folder / "checkpoint.pt")
        self.initialized = True

    def preprocess(self, data: Sequence[Mapping[str, Any]]) -> list[Inputs]:
        """Read every request's body."""
        parts = []
        for row in data:
            body = row.get("data") or row.get("body")
            if isinstance(body, str | bytes | bytearray):
                body = json.loads(body)
            parts.append(Inputs.of(body))
        return parts

    def inference(self, data: list[Inputs]) -> list[np.ndarray[Any, Any]]:
        """Score all rows, together."""
        return score(self.model, data)

    def postprocess(self, data: list[np.ndarray[Any, Any]]) -> list[dict[str, list[float]]]:
        """One answer a request."""
        return [{"default": scores.tolist()} for scores in data]

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch."""
        del context
        return self.postprocess(self.inference(self.preprocess(data)))
