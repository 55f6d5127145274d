"""LitServe with batches of 64, its process for HTTP and its process for the model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from benchmarks.peers.stock import Inputs, StockModel, score


class ModelApi(litserve.LitAPI):
    """The stages as LitServe names them."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.002)
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:
        """Load the model, in the process that runs it."""
        del device
        self._model = StockModel(self._checkpoint)

    def decode_request(self, request: dict[str, Any]) -> Inputs:
        """One request."""
        return Inputs.of(request)

    def batch(self, inputs: Sequence[Inputs]) -> Sequence[Inputs]:
        """Left as they are: `predict` needs the rows of each."""
        return inputs

    def predict(self, x: Sequence[Inputs]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """The scores of each request."""
        return score(self._model, x)

    def unbatch(
        self, output: list[np.ndarray[Any, np.dtype[np.float32]]]
    ) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """`predict` did."""
        return output

    def encode_response(
        self, output: np.ndarray[Any, np.dtype[np.float32]]
    ) -> dict[str, list[float]]:
        """What becomes the JSON answer."""
        return {"default": output.tolist()}


def main() -> None:
    """Serve the checkpoint named first on the port named second."""
    server = litserve.LitServer(
        ModelApi(Path(sys.argv[1])),
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
