"""The ordinary way, to compare with: each worker reads its tables into memory of its own."""

from pathlib import Path
from typing import Any

import torch

from torchrec_handler.handler import TorchRecHandler
from torchrec_handler.load.tables import lookups

TABLES = "tables.pt"


class OrdinaryHandler(TorchRecHandler):
    """The handler, its lookups pointed at what `torch.load` gives."""

    def initialize(self, context: Any) -> None:
        """Load the archive, then the tables."""
        super().initialize(context)
        hold_tables(self.model, Path(context.system_properties["model_dir"]))


def hold_tables(module: torch.nn.Module, folder: Path) -> None:
    """Read the tables of a module as everybody does."""
    buffer = torch.load(folder / TABLES)
    for lookup in lookups(module):
        lookup.operator.weights_host = buffer
