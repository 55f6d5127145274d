"""Fifth step of loading: lay the quantized tables over devices with TorchRec's planner."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import DEFAULT_SHARDERS, shard_quant_model

from torchrec_handler.errors import OptionError
from torchrec_handler.options import Sharding

UNBOUNDED_BYTES = 2**50
"""Host memory given to the planner: tables are mapped from a file, so their size is no limit."""


def shard(
    module: torch.nn.Module, options: Sharding, plan: ShardingPlan | None, device: torch.device
) -> tuple[torch.nn.Module, ShardingPlan | None]:
    """Shard every quantized collection that is not sharded yet.

    On the CPU the sharded lookups are made on `meta`, so that no table is allocated; `tables`
    points them at their rows. On CUDA they are allocated on their devices, as TorchRec does it.

    Args:
        module: with quantized collections.
        options: constraints for the planner.
        plan: a plan to follow instead of planning.
        device: where to serve; on CUDA its kind only, a plan names devices by rank.

    Returns:
        The module, and the plan; None when there was nothing to shard.

    Raises:
        OptionError: `per_table` names a table that the module lacks.
    """
    names = _unsharded_tables(module)
    if unknown := sorted(set(options.per_table) - set(names)):
        message = (
            f"torchrec.sharding.per_table: names {', '.join(unknown)}, "
            f"but the tables to shard are {', '.join(names) or 'none'}"
        )
        raise OptionError(message)
    if not names:
        return module, None
    # Without this the lookups are made on CUDA whatever the compute device is.
    set_propogate_device(True)
    # Of one call these log some 200 lines of statistics, every argument's whole repr, and a warning
    # about the topology that shard_quant_model itself causes.
    for name in ("torchrec.distributed.planner", "MethodLogger-NullHandler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sharded: tuple[torch.nn.Module, ShardingPlan] = shard_quant_model(
        module,
        world_size=options.world_size,
        compute_device=device.type,
        sharding_device="meta" if device.type == "cpu" else device.type,
        constraints=_constraints(names, options.per_table, options.type),
        ddr_cap=UNBOUNDED_BYTES,
        sharding_plan=plan,
    )
    return sharded


def _unsharded_tables(module: torch.nn.Module) -> list[str]:
    shardable = {sharder.module_type for sharder in DEFAULT_SHARDERS}
    names: list[str] = []
    for found in module.modules():
        if type(found) in shardable:
            tables: Any = getattr(found, "embedding_bags", None)
            names.extend(getattr(found, "embeddings", {}) if tables is None else tables)
    return names


def _constraints(
    names: list[str], per_table: Mapping[str, str], default: str
) -> dict[str, ParameterConstraints]:
    return {
        name: ParameterConstraints(
            sharding_types=[per_table.get(name, default)],
            compute_kernels=[EmbeddingComputeKernel.QUANT.value],
        )
        for name in names
    }
