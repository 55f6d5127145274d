"""The ordinary ways, to compare with: each worker holds its tables in memory of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torchrec.inference.modules import quantize_inference_model

from benchmarks.criteo import CriteoConfig, CriteoPredictModule
from torchrec_handler.archive.format import TableEntry
from torchrec_handler.tables.store import TableStore

WEIGHTS = "weights.pt"
"""A float32 checkpoint."""
TABLES = "tables.pt"
"""All tables, quantized beforehand, as one tensor."""


def beside(archive: Path) -> Path:
    """The folder of an archive's files that its index does not list, and may not hold itself."""
    return archive.resolve().with_name(f"{archive.resolve().name}-files")


def convert(folder: Path) -> torch.nn.Module:
    """What a worker does that is given the training job's checkpoint: read it and quantize.

    With everything that saves memory and time: tables on `meta` until the checkpoint's mapped
    tensors take their places.
    """
    state = torch.load(beside(folder) / WEIGHTS, mmap=True, weights_only=True)
    rows = tuple(value.shape[0] for name, value in state.items() if "embedding_bags" in name)
    module = CriteoPredictModule(CriteoConfig(rows=rows))
    module.predict_module.load_state_dict(state, assign=True)
    quantized: torch.nn.Module = quantize_inference_model(module)
    return quantized


def hold_tables() -> None:
    """Let every archive that this process loads read its tables with `torch.load`."""

    def read(cls: type[TableStore], path: Path, entries: Sequence[TableEntry]) -> TableStore:
        by_key = {entry.key: entry for entry in entries}
        return cls(entries=by_key, buffer=torch.load(beside(path.parent) / TABLES))

    TableStore.map = classmethod(read)  # type: ignore[method-assign,assignment]
