"""Fourth step of building: fit a checkpoint to the predict module by the model's own names."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from torchrec_handler.errors import BuildError
from torchrec_handler.load.quantize import float_tables
from torchrec_handler.load.tables import layout
from torchrec_handler.load.weights import checkpoint_root, dense_state


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint, told apart by where it goes."""

    dense: Mapping[str, torch.Tensor]
    """Checkpoint name -> tensor."""
    rows: Mapping[tuple[str, str], torch.Tensor]
    """(collection, table name) -> float rows [rows, D]."""


def fit(
    state: Mapping[str, torch.Tensor], module: torch.nn.Module, mapped: Collection[str] = ()
) -> Weights:
    """Find every weight of the module in a checkpoint.

    Args:
        state: checkpoint name -> tensor.
        module: the predict module; its tables may be float, on `meta`, or quantized by the factory,
            a checkpoint holds them in floats.
        mapped: type names that are quantized beside TorchRec's collections, see `float_tables`.

    Raises:
        BuildError: lists every missing, unexpected and wrongly shaped entry at once.
    """
    prefix, _ = checkpoint_root(module)
    dense = dense_state(module, mapped)
    expected = {name: tuple(value.shape) for name, value in dense.items()}
    tables: dict[str, tuple[str, str]] = {}
    for table in float_tables(module, mapped):
        name = table.parameter.removeprefix(prefix)
        tables[name] = table.collection, table.name
        expected[name] = tuple(table.weight.shape)
    for entry in layout(module):
        collection = module.get_submodule(entry.collection)
        part = "embedding_bags" if hasattr(collection, "embedding_bags") else "embeddings"
        name = f"{entry.collection}.{part}.{entry.name}.weight".removeprefix(prefix)
        tables[name] = entry.collection, entry.name
        expected[name] = entry.rows, entry.width
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    faults = [f"missing: {name}{_nearest(name, unexpected)}" for name in missing]
    faults += [f"unexpected: {name}{_nearest(name, missing)}" for name in unexpected]
    faults += [
        f"{name}: received shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if faults:
        message = "weights: the checkpoint does not fit the predict module\n  " + "\n  ".join(
            sorted(faults)
        )
        raise BuildError(message)
    return Weights(
        dense={name: state[name] for name in dense},
        rows={table: state[name] for name, table in tables.items()},
    )


def _nearest(name: str, candidates: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
