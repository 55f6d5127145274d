"""The ordinary way as TorchServe calls it."""

from typing import Any

from benchmarks.ordinary import hold_tables
from torchrec_handler.front.torchserve.worker import TorchRecHandler


class OrdinaryHandler(TorchRecHandler):
    """The handler, its tables read with `torch.load`."""

    def initialize(self, context: Any) -> None:
        """Load the archive."""
        hold_tables()
        super().initialize(context)
