"""The ordinary way, to compare with: each worker reads its tables into memory of its own."""

from pathlib import Path

import torch

from torchrec_handler.load.tables import lookups

TABLES = "tables.pt"


def hold_tables(module: torch.nn.Module, folder: Path) -> None:
    """Read the tables of a module as everybody does."""
    buffer = torch.load(folder / TABLES)
    for lookup in lookups(module):
        lookup.operator.weights_host = buffer
