"""Fifth step of loading: lay the quantized tables over devices with TorchRec's planner."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import shard_quant_model
from torchrec.modules.embedding_configs import DataType, data_type_to_sparse_type

from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import FactoryError, OptionError
from torchrec_handler.options import Sharding
from torchrec_handler.tables.collection import Collection, Collections
from torchrec_handler.tables.modules import SHARDERS, compute_device_everywhere
from torchrec_handler.tables.rows import DATA_TYPES, NAMES

UNBOUNDED_BYTES = 2**50
"""Host memory given to the planner: tables are mapped from a file, so their size is no limit."""

ROOM = (1.02, 1.1, 1.25, 1.5, 2.0)
"""Over an even share of the tables, what a device may hold where that leads to a plan."""
ROOM_BYTES = 2**16
"""What the planner counts beside tables, with some to spare."""

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
    module: torch.nn.Module,
    collections: Collections,
    options: Sharding,
    plan: ShardingPlan | None,
    device: torch.device,
) -> tuple[torch.nn.Module, ShardingPlan | None]:
    """Shard every quantized collection; a module that its factory sharded is taken as it is.

    On the CPU the sharded lookups are made on `meta`, so that no table is allocated; `tables`
    points them at their rows. On CUDA they are allocated on their devices, as TorchRec does it, or,
    for one GPU that is not the first, by `tables`.

    Args:
        module: with quantized collections.
        collections: all of the module's.
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
    unsharded = collections.of_kind("quantized")
    names = [table.key.table for one in unsharded for table in one.tables]
    if unknown := sorted(set(options.per_table) - set(names)):
        message = (
            f"torchrec.sharding.per_table: names {', '.join(unknown)}, "
            f"but the tables to shard are {', '.join(names) or 'none'}"
        )
        raise OptionError(message)
    if not names:
        return module, None
    if collections.is_sharded:
        sharded, others = (
            ", ".join(one.path for one in found)
            for found in (collections.of_kind("sharded"), unsharded)
        )
        message = (
            f"the factory sharded {sharded}, but not {others}; let it shard all collections or none"
        )
        raise FactoryError(message)
    if plan is None:
        types = {name: options.per_table.get(name, options.type) for name in names}
    else:
        _check_plan(plan, unsharded, options, device)
        types = {
            name: entry.sharding_type
            for found in plan.plan.values()
            for name, entry in found.items()
        }
    _check_position_weighted(unsharded, types)
    _show_logical_shapes(unsharded)
    # TorchRec counts GPUs from 0; a worker may have another one for itself.
    is_one_of_many = options.world_size == 1 and bool(device.index)
    for limit in _limits(unsharded, types, options.world_size):
        try:
            with compute_device_everywhere():
                result: tuple[torch.nn.Module, ShardingPlan] = shard_quant_model(
                    module,
                    world_size=options.world_size,
                    compute_device=device.type,
                    sharding_device=(
                        "meta" if device.type == "cpu" or is_one_of_many else device.type
                    ),
                    sharders=list(SHARDERS),
                    constraints=_constraints(types),
                    ddr_cap=limit,
                    sharding_plan=plan,
                )
            break
        except PlannerError as error:
            if limit == UNBOUNDED_BYTES:
                message = f"torchrec.sharding: TorchRec's planner finds no plan: {error}"
                raise OptionError(message) from error
    for one in unsharded:
        _keep_hooks(one.module, result[0].get_submodule(one.path))
    return result


def _keep_hooks(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Let a collection's hooks be called around the one that takes its place."""
    for name in HOOKS:
        getattr(new, name).update(getattr(old, name))


def _limits(
    collections: Sequence[Collection], types: Mapping[str, str], devices: int
) -> Iterator[int]:
    """Bytes that a device may hold, tried in turn: TorchRec's planner evens out time, not memory.

    Of a table-wise plan no less than its largest table.
    """
    tables = [table for one in collections for table in one.tables]
    sizes = {table.key: table.owner.weight.nbytes for table in tables}
    whole = [sizes[table.key] for table in tables if types[table.key.table] == "table_wise"]
    even = max([sum(sizes.values()) / devices, *whole])
    if devices > 1:
        yield from (int(even * room) + ROOM_BYTES for room in ROOM)
    yield UNBOUNDED_BYTES


def _constraints(types: Mapping[str, str]) -> dict[str, ParameterConstraints]:
    return {
        name: ParameterConstraints(
            sharding_types=[kind], compute_kernels=[EmbeddingComputeKernel.QUANT.value]
        )
        for name, kind in types.items()
    }


def _check_position_weighted(collections: Sequence[Collection], types: Mapping[str, str]) -> None:
    for table in (table for one in collections if one.is_processed for table in one.tables):
        if types[table.key.table] == "row_wise":
            message = (
                f"torchrec.sharding: table {table.key.table!r} is row_wise, expected table_wise: "
                "its ids are weighted by their position, which a shard of its rows cannot tell"
            )
            raise OptionError(message)


def _check_plan(
    plan: object,
    collections: Sequence[Collection],
    options: Sharding,
    device: torch.device,
) -> None:
    where = f"torchrec.sharding.plan: {options.plan}"
    if not isinstance(plan, ShardingPlan):
        message = f"{where} holds {type(plan).__name__}, expected a ShardingPlan"
        raise OptionError(message)
    wanted = {table.key for one in collections for table in one.tables}
    given = {
        TableKey(path, name): entry
        for path, table in plan.plan.items()
        for name, entry in table.items()
    }
    if given.keys() != wanted:
        missing = ", ".join(sorted(map(".".join, wanted - given.keys())))
        unknown = ", ".join(sorted(map(".".join, given.keys() - wanted)))
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


def _show_logical_shapes(collections: Sequence[Collection]) -> None:
    """Give the planner each table as [rows, width], which a buffer of encoded rows is not."""
    for table in (table for one in collections for table in one.tables):
        config = table.config
        # Row-wise sharding cuts by num_embeddings, whatever was pruned.
        config.num_embeddings = table.rows
        table.owner.weight = torch.empty(
            config.num_embeddings,
            config.embedding_dim,
            dtype=_planned_dtype(config.data_type),
            device="meta",
        )
