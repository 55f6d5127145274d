"""The ordinary way as TorchServe calls it."""

from pathlib import Path
from typing import Any

from benchmarks.ordinary import hold_tables
from torchrec_handler.handler import TorchRecHandler


class OrdinaryHandler(TorchRecHandler):
    """The handler, its lookups pointed at what `torch.load` gives."""

    def initialize(self, context: Any) -> None:
        """Load the archive, then the tables."""
        super().initialize(context)
        hold_tables(self.model, Path(context.system_properties["model_dir"]))
