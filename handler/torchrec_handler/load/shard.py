"""Fifth step of loading: lay the quantized tables over devices with TorchRec's planner."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import shard_quant_model
from torchrec.modules.embedding_configs import DataType, data_type_to_sparse_type
from torchrec.quant.embedding_modules import FeatureProcessedEmbeddingBagCollection

from torchrec_handler.errors import FactoryError, OptionError
from torchrec_handler.options import Sharding
from torchrec_handler.tables.modules import SHARDERS, compute_device_everywhere
from torchrec_handler.tables.rows import DATA_TYPES, NAMES

UNBOUNDED_BYTES = 2**50
"""Host memory given to the planner: tables are mapped from a file, so their size is no limit."""

SHARDABLE = frozenset(sharder.module_type for sharder in SHARDERS)
SHARDING_TYPES = ("table_wise", "row_wise")
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Where a module keeps what was registered on it."""


def shard(
    module: torch.nn.Module, options: Sharding, plan: ShardingPlan | None, device: torch.device
) -> tuple[torch.nn.Module, ShardingPlan | None]:
    """Shard every quantized collection; a module that its factory sharded is taken as it is.

    On the CPU the sharded lookups are made on `meta`, so that no table is allocated; `tables`
    points them at their rows. On CUDA they are allocated on their devices, as TorchRec does it, or,
    for one GPU that is not the first, by `tables`.

    Args:
        module: with quantized collections.
        options: constraints for the planner.
        plan: a plan to follow instead of planning.
        device: where to serve; of several GPUs its kind only, a plan names them by rank.

    Returns:
        The module, and the plan; None when there was nothing to shard.

    Raises:
        OptionError: `per_table` or the plan names a table that the module lacks, or a table cannot
            be sharded as they want it.
        FactoryError: the factory sharded some collections and left others.
    """
    collections = dict(_unsharded(module))
    names = [name for tables in collections.values() for name in tables]
    if unknown := sorted(set(options.per_table) - set(names)):
        message = (
            f"torchrec.sharding.per_table: names {', '.join(unknown)}, "
            f"but the tables to shard are {', '.join(names) or 'none'}"
        )
        raise OptionError(message)
    if not names:
        return module, None
    if sharded := [path for path, found in module.named_modules() if _is_sharded(found)]:
        message = (
            f"the factory sharded {', '.join(sharded)}, but not {', '.join(collections)}; "
            "let it shard all collections or none"
        )
        raise FactoryError(message)
    if plan is None:
        types = {name: options.per_table.get(name, options.type) for name in names}
    else:
        _check_plan(plan, collections, options, device)
        types = {
            name: entry.sharding_type
            for found in plan.plan.values()
            for name, entry in found.items()
        }
    _check_position_weighted(module, types)
    _show_logical_shapes(module)
    hooked = {path: module.get_submodule(path) for path in collections}
    # TorchRec counts GPUs from 0; a worker may have another one for itself.
    is_one_of_many = options.world_size == 1 and bool(device.index)
    try:
        with compute_device_everywhere():
            result: tuple[torch.nn.Module, ShardingPlan] = shard_quant_model(
                module,
                world_size=options.world_size,
                compute_device=device.type,
                sharding_device=("meta" if device.type == "cpu" or is_one_of_many else device.type),
                sharders=list(SHARDERS),
                constraints=_constraints(types),
                ddr_cap=UNBOUNDED_BYTES,
                sharding_plan=plan,
            )
    except PlannerError as error:
        message = f"torchrec.sharding: TorchRec's planner finds no plan: {error}"
        raise OptionError(message) from error
    for path, found in hooked.items():
        _keep_hooks(found, result[0].get_submodule(path))
    return result


def _keep_hooks(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Let a collection's hooks be called around the one that takes its place."""
    for name in HOOKS:
        getattr(new, name).update(getattr(old, name))


def _is_sharded(module: torch.nn.Module) -> bool:
    return hasattr(module, "tbes_configs")


def _unsharded(module: torch.nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Path -> table names of every collection to shard."""
    for path, found in module.named_modules():
        if type(found) in SHARDABLE:
            yield path, [config.name for config in _configs(found)]


def _configs(collection: Any) -> Any:
    if hasattr(collection, "embedding_bag_configs"):
        return collection.embedding_bag_configs()
    return collection.embedding_configs()


def _constraints(types: Mapping[str, str]) -> dict[str, ParameterConstraints]:
    return {
        name: ParameterConstraints(
            sharding_types=[kind], compute_kernels=[EmbeddingComputeKernel.QUANT.value]
        )
        for name, kind in types.items()
    }


def _check_position_weighted(module: torch.nn.Module, types: Mapping[str, str]) -> None:
    for found in module.modules():
        if type(found) is not FeatureProcessedEmbeddingBagCollection:
            continue
        for config in _configs(found):
            if types[config.name] == "row_wise":
                message = (
                    f"torchrec.sharding: table {config.name!r} is row_wise, expected table_wise: "
                    "its ids are weighted by their position, which a shard of its rows cannot tell"
                )
                raise OptionError(message)


def _check_plan(
    plan: object,
    collections: Mapping[str, list[str]],
    options: Sharding,
    device: torch.device,
) -> None:
    where = f"torchrec.sharding.plan: {options.plan}"
    if not isinstance(plan, ShardingPlan):
        message = f"{where} holds {type(plan).__name__}, expected a ShardingPlan"
        raise OptionError(message)
    wanted = {(path, name) for path, names in collections.items() for name in names}
    given = {
        (path, name): entry for path, table in plan.plan.items() for name, entry in table.items()
    }
    if given.keys() != wanted:
        missing = ", ".join(sorted(f"{path}.{name}" for path, name in wanted - given.keys()))
        unknown = ", ".join(sorted(f"{path}.{name}" for path, name in given.keys() - wanted))
        message = f"{where} lacks {missing or 'none'} and names {unknown or 'none'} in vain"
        raise OptionError(message)
    for (_, name), entry in given.items():
        if entry.sharding_type not in SHARDING_TYPES:
            message = (
                f"{where} has table {name!r} {entry.sharding_type}, expected table_wise or "
                "row_wise; a quantized row has one scale and cannot be cut"
            )
            raise OptionError(message)
        for part in entry.sharding_spec.shards:
            rank, kind = part.placement.rank(), part.placement.device().type
            if rank >= options.world_size or kind != device.type:
                message = (
                    f"{where} has table {name!r} on rank {rank} of {kind}, expected a rank below "
                    f"the world size of {options.world_size}, of {device.type}"
                )
                raise OptionError(message)


def _planned_dtype(data_type: DataType) -> torch.dtype:
    name = NAMES[data_type_to_sparse_type(data_type)]
    return DATA_TYPES[name].torch if name.startswith("float") else torch.uint8


def _show_logical_shapes(module: torch.nn.Module) -> None:
    """Give the planner each table as [rows, width], which a buffer of encoded rows is not."""
    for found in module.modules():
        if type(found) not in SHARDABLE:
            continue
        tables: Any = getattr(found, "embedding_bags", None) or found.embeddings
        for config in _configs(found):
            # Row-wise sharding cuts by num_embeddings, whatever was pruned.
            pruned = getattr(config, "num_embeddings_post_pruning", None)
            config.num_embeddings = pruned or config.num_embeddings
            tables[config.name].weight = torch.empty(
                config.num_embeddings,
                config.embedding_dim,
                dtype=_planned_dtype(config.data_type),
                device="meta",
            )
