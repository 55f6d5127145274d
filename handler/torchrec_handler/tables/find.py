"""Finds the embedding collections of a module; no other file asks what one is.

Float, quantized, sharded and managed-collision collections share no class, and those that came out
of a torch.package none with TorchRec's: they are known by type names and attributes, here only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from torchrec.inference.modules import (
    DEFAULT_QUANT_MAPPING,
    FEATURE_PROCESSED_EBC_TYPE,
    trim_torch_package_prefix_from_typename,
)
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)
from torchrec.quant.embedding_modules import (
    MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
    EmbeddingBagCollection,
    EmbeddingCollection,
    FeatureProcessedEmbeddingBagCollection,
)

from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import FactoryError
from torchrec_handler.tables.collection import (
    TABLES,
    Collection,
    Collections,
    Kind,
    Lookup,
    Table,
    is_inside,
)

MOST_ROWS = 2**31 - 1
"""Of a table: FBGEMM and the requests' formats count them in 32 bits."""

INTERFACES = (EmbeddingBagCollectionInterface, EmbeddingCollectionInterface)

FLOAT = frozenset({*DEFAULT_QUANT_MAPPING, FEATURE_PROCESSED_EBC_TYPE})
"""Type names of the float collections that `quantize_inference_model` finds by itself."""

QUANTIZED = (EmbeddingBagCollection, EmbeddingCollection, FeatureProcessedEmbeddingBagCollection)

SHARDED_ATTRIBUTE = "tbes_configs"

QUANTIZED_ATTRIBUTE = "_emb_modules"

PARALLEL = "torchrec.distributed.model_parallel.DistributedModelParallel"

MANAGED_ATTRIBUTE = "_managed_collision_collection"

PROCESSORS = ("_feature_processors", "feature_processor", "feature_processors_per_rank")
"""What collections have that give each id a weight of their own."""


def is_collection(module: torch.nn.Module) -> bool:
    """Whether a module is an embedding collection, float, quantized or sharded."""
    return isinstance(module, INTERFACES) or any(
        hasattr(module, name)
        for name in (SHARDED_ATTRIBUTE, QUANTIZED_ATTRIBUTE, MANAGED_ATTRIBUTE)
    )


def is_parallel(module: torch.nn.Module) -> bool:
    """Whether a module is TorchRec's training form, whose ranks meet in collectives when called."""
    return any(True for _ in of_type(module, {PARALLEL}))


def of_type(
    module: torch.nn.Module, typenames: Iterable[str]
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules by path, none inside another, whose type has one of these names.

    As `quantize_inference_model` finds them, so that classes of a torch.package count too.
    """
    wanted = set(typenames)
    outer: str | None = None
    for path, part in module.named_modules():
        if outer is not None and is_inside(path, outer):
            continue
        if trim_torch_package_prefix_from_typename(torch.typename(part)) in wanted:
            outer = path
            yield path, part


def find_collections(module: torch.nn.Module, mapped: Iterable[str] = ()) -> Collections:
    """Find every embedding collection of a module.

    Those inside a float one, which are swapped with it, are found as its tables; inside managed
    collision, those that are quantized or will be.

    Args:
        module: the predict module, at any stage of loading.
        mapped: type names that are quantized beside TorchRec's collections, as
            `Tables.quantization_mapping` has them.

    Raises:
        FactoryError: a table has more rows than ids of 32 bits can tell.
    """
    modules = dict(module.named_modules())
    floats = dict(of_type(module, FLOAT.union(mapped)))
    managed = [path for path, part in modules.items() if hasattr(part, MANAGED_ATTRIBUTE)]
    pruned: dict[str, int] = {}
    longest: dict[str, int] = {}
    configs: dict[str, list[tuple[Any, int]]] = {}
    for path, part in modules.items():
        _add_longest(longest, path, part)
        # On a position-weighted collection it is set outside, the configs are inside.
        pruned |= getattr(part, MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT, {})
        configs[path] = [(config, _rows_left(config, pruned)) for config in _configs(part)]
    found = []
    for path, part in modules.items():
        # Of what is inside these, the whole is known, or it has lookups of its own.
        is_own = not any(is_inside(path, outer) for outer in (*floats, *managed))
        kind = _kind(path, part, floats, is_own=is_own and bool(configs[path]))
        if kind is None:
            continue
        inner = [path]
        if kind == "float":
            inner += [other for other in modules if is_inside(other, path)]
        below: dict[str, int] = {}
        for config, rows in (
            one
            for other in inner
            if not any(other == outer or is_inside(other, outer) for outer in managed)
            for one in configs[other]
        ):
            for feature in config.feature_names:
                below[feature] = min(rows, below.get(feature, rows))
        known = {config.name: (config, rows) for other in inner for config, rows in configs[other]}
        lookups = tuple(_lookups(path, part))
        owners = _owners(part, lookups, known, is_float=kind == "float")
        is_processed = any(hasattr(part, name) for name in PROCESSORS)
        found.append(
            Collection(
                path=path,
                module=part,
                kind=kind,
                is_managed=path in managed,
                is_weighted=is_processed or _reads_weights(part),
                is_processed=is_processed,
                tables=tuple(_tables(path, known, owners)),
                lookups=lookups,
                ids_below=below,
            )
        )
    return Collections(found=tuple(found), longest=longest)


def _kind(path: str, part: Any, floats: Mapping[str, Any], *, is_own: bool) -> Kind | None:
    if path in floats:
        return "float"
    if hasattr(part, SHARDED_ATTRIBUTE):
        return "sharded"
    if type(part) in QUANTIZED:
        return "quantized"
    has_lookups = isinstance(getattr(part, QUANTIZED_ATTRIBUTE, None), list)
    return "other" if is_own or has_lookups or hasattr(part, MANAGED_ATTRIBUTE) else None


def _configs(part: Any) -> Sequence[Any]:
    configs = getattr(part, "embedding_bag_configs", None) or getattr(
        part, "embedding_configs", None
    )
    given: Sequence[Any] = configs() if callable(configs) else ()
    return given


def _rows_left(config: Any, pruned: Mapping[str, int]) -> int:
    if config.num_embeddings > MOST_ROWS:
        message = (
            f"table {config.name!r}: has {config.num_embeddings} rows, expected at most "
            f"{MOST_ROWS}: lookups count rows in 32 bits; split the table"
        )
        raise FactoryError(message)
    left: int = getattr(config, "num_embeddings_post_pruning", None) or config.num_embeddings
    return min(left, pruned.get(config.name, left))


def _owners(
    part: Any, lookups: Iterable[Lookup], known: Iterable[str], *, is_float: bool
) -> dict[str, Any]:
    """Path of a table in its collection -> the module that holds its rows, where one does."""
    if is_float:
        return {inner: one for inner, one in part.named_modules() if _is_table(inner)}
    inside = next((name for name in TABLES if hasattr(part, name)), TABLES[-1])
    own = getattr(part, inside, None)
    held = dict(own.items()) if isinstance(own, torch.nn.ModuleDict) else {}
    looked_up = [spec[0] for lookup in lookups for spec in lookup.operator.embedding_specs]
    return {f"{inside}.{name}": held.get(name) for name in dict.fromkeys([*known, *looked_up])}


def _tables(
    path: str, known: Mapping[str, tuple[Any, int]], owners: Mapping[str, Any]
) -> Iterator[Table]:
    for inner, owner in owners.items():
        name = inner.rpartition(".")[2]
        config, rows = known.get(name, (None, None))
        yield Table(
            key=TableKey(path, name),
            parameter=".".join(filter(None, (path, inner, "weight"))),
            features=tuple(config.feature_names) if config else (),
            rows=rows,
            owner=owner,
            config=config,
        )


def _is_table(inner: str) -> bool:
    parts = inner.split(".")
    return len(parts) > 1 and parts[-2] in TABLES


def _lookups(path: str, part: Any) -> Iterator[Lookup]:
    if hasattr(part, SHARDED_ATTRIBUTE):
        for operator, group in part.tbes_configs().items():
            shards = [table.local_metadata for table in group.embedding_tables]
            first_rows = tuple(shard.shard_offsets[0] if shard else 0 for shard in shards)
            placed = next((shard.placement for shard in shards if shard), None)
            yield Lookup(
                collection=path,
                operator=operator,
                first_rows=first_rows,
                rank=placed.rank() if placed else 0,
            )
    elif isinstance(emb_modules := getattr(part, QUANTIZED_ATTRIBUTE, None), list):
        for operator in emb_modules:
            if isinstance(operator, IntNBitTableBatchedEmbeddingBagsCodegen):
                first_rows = (0,) * len(operator.embedding_specs)
                yield Lookup(collection=path, operator=operator, first_rows=first_rows)


def _reads_weights(part: Any) -> bool:
    is_weighted = getattr(part, "is_weighted", False)
    return bool(is_weighted() if callable(is_weighted) else is_weighted)


def _add_longest(longest: dict[str, int], path: str, part: Any) -> None:
    of_features = getattr(part, "max_feature_lengths", None)
    weight = getattr(part, "position_weight", None)
    if isinstance(of_features, Mapping):
        longest.update(of_features)
    elif isinstance(weight, torch.Tensor):
        longest[path.rpartition(".")[2]] = weight.numel()
