"""Dense weights: all of a checkpoint that is not a table, loaded by the model's own names."""

from collections.abc import Mapping

import torch
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection

from torchrec_handler.errors import WeightsError
from torchrec_handler.tables.collection import Collections, Table


def checkpoint_root(module: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """The module whose names a checkpoint uses, and its prefix in the predict module.

    `PredictModule.state_dict` gives the inner module's names (torchrec.inference.modules), so a
    checkpoint of the trained model loads as it is.
    """
    inner = getattr(module, "predict_module", None)
    for name, child in module.named_children():
        if child is inner:
            return f"{name}.", child
    return "", module


def dense_state(module: torch.nn.Module, collections: Collections) -> dict[str, torch.Tensor]:
    """The module's own dense weights: checkpoint name -> tensor, parameters and buffers.

    Args:
        module: the predict module.
        collections: those of the module.

    Raises:
        WeightsError: a module keeps something else in its state, which only a pickle could hold.
    """
    prefix, root = checkpoint_root(module)
    dense = {
        name: value
        for name, value in root.state_dict().items()
        if not collections.hold_rows(f"{prefix}{name}")
    }
    if odd := [name for name, value in dense.items() if not isinstance(value, torch.Tensor)]:
        message = (
            f"the module's state holds {', '.join(odd)}, expected tensors only; quantize or lower "
            "in run_weights_dependent_transformations"
        )
        raise WeightsError(message)
    return dense


def table_names(module: torch.nn.Module, collections: Collections) -> dict[str, Table]:
    """Checkpoint name -> float table.

    Args:
        module: the predict module.
        collections: those of the module.
    """
    prefix, _ = checkpoint_root(module)
    return {table.parameter.removeprefix(prefix): table for table in collections.float_tables}


def load_dense(
    module: torch.nn.Module,
    collections: Collections,
    dense: Mapping[str, torch.Tensor],
    device: torch.device,
) -> None:
    """Load dense weights in place, keeping each parameter's device and data type.

    Args:
        module: the predict module.
        collections: those of the module.
        dense: checkpoint name -> tensor; no tables but those that the factory's transformations
            take out of their collections.
        device: where parameters that are on `meta` go.

    Raises:
        WeightsError: lists every missing, unexpected and wrongly shaped entry.
    """
    own = dense_state(module, collections)
    own |= {
        name: table.weight.detach()
        for name, table in table_names(module, collections).items()
        if name in dense
    }
    faults = [f"missing: {name}" for name in own if name not in dense]
    faults += [f"unexpected: {name}" for name in dense if name not in own]
    faults += [
        f"{name}: received shape {tuple(dense[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in dense and dense[name].shape != value.shape
    ]
    if faults:
        message = "the dense weights do not fit the module: " + "; ".join(sorted(faults))
        raise WeightsError(message)
    cast = {
        name: dense[name].to(device if value.is_meta else value.device, value.dtype)
        for name, value in own.items()
    }
    root = checkpoint_root(module)[1]
    root.load_state_dict(cast, strict=False, assign=True)
    for found in root.modules():
        if isinstance(found, PositionWeightedModuleCollection):
            # Its second dict of the same weights follows only when it is loaded by itself.
            found.position_weights_dict.update(found.position_weights.items())
