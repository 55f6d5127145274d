"""Lookups in this process's own memory, called directly.

TorchRec gives every device a KeyedJaggedTensor of its own and collects what they find, and FBGEMM
looks for pruned rows and caches in python: on one CPU that costs ten times what looking one row up
costs. Shapes: B rows, F features, D the sum of their widths, N ids.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from torchrec.distributed.quant_embedding import ShardedQuantEmbeddingCollection
from torchrec.distributed.quant_embeddingbag import ShardedQuantEmbeddingBagCollection
from torchrec.distributed.types import ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_handler.kernels.kernel import Forward, Target, not_for
from torchrec_handler.tables.ahead import Lists, forward_calls
from torchrec_handler.tables.exchange import Leader
from torchrec_handler.tables.modules import ShardedBags, ShardedSequences
from torchrec_handler.tables.spread import Site, ask_ahead, look_up_on_all, spread_of

Lookup = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Ids [N], offsets [F * B + 1] and weights [N] -> [B, D]."""

WATCH = "_watch_lookups"
"""Attribute of an operator: what is told of its lookups."""

COLLECTIONS = (ShardedBags, ShardedQuantEmbeddingBagCollection)
SEQUENCES = (ShardedSequences, ShardedQuantEmbeddingCollection)


class DirectKernel:
    """Pooled collections whose tables are table-wise, on the CPU, and neither pruned nor cached."""

    name = "direct"

    def offer(self, module: torch.nn.Module, target: Target) -> Forward | str | None:
        """See `Kernel`."""
        if type(module) not in COLLECTIONS:
            return None
        return not_for(target) or why_not(module) or Forward(call=_direct(module).forward)


def why_not(bags: Any) -> str | None:
    """Why a collection's lookups cannot be called directly; None where they can."""
    if type(bags) not in COLLECTIONS:
        return f"is a {type(bags).__name__}"
    groups = bags.sharding_type_device_group_to_sharding_infos()
    others = {kind for kind, _ in groups} - {ShardingType.TABLE_WISE.value}
    if others:
        return f"has {', '.join(sorted(others))} tables, whose ids go to several places"
    return next(filter(None, map(_why_not, _own_operators(bags))), None)


def _own_operators(bags: Any) -> Iterable[Any]:
    """Those that have their rows in this process."""
    spread = spread_of(bags)
    if spread is None:
        return list(bags.tbes_configs())
    own = spread.leader.ranks.own
    parts = [site.parts[own] for site in spread.sites if own in site.parts]
    return [operator for part in parts for operator in part.get_tbes_to_register()]


def _why_not(operator: Any) -> str | None:
    if type(operator) is not IntNBitTableBatchedEmbeddingBagsCodegen:
        return f"looks up with {type(operator).__name__}"
    if operator.host_size <= 0:
        return "has rows that are not in the CPU's memory"
    if finds_rows(operator):
        return "has pruned tables, whose rows FBGEMM finds by itself"
    return "has a cache of rows" if operator.lxu_cache_weights.numel() else None


def finds_rows(operator: Any) -> bool:
    """Whether FBGEMM's operator looks for the rows of its ids by itself, as tables are pruned."""
    return bool(
        operator.index_remapping_hash_table_cpu is not None
        or operator.index_remapping_hash_table.numel()
        or operator.index_remappings_array.numel()
    )


def _direct(module: Any) -> Any:
    """A collection of the same parts, with two steps of TorchRec's forward replaced.

    There is nothing to distribute, and one place to compute.
    """
    bags, kind = copy.copy(module), type(module)
    groups = bags.tbes_configs().values()
    names = [name for group in groups for name in group.embedding_names()]
    widths = [width for group in groups for width in group.embedding_dims()]
    starts = list(accumulate(widths, initial=0))
    positions = {name: position for position, name in enumerate(names)}
    look_up = Pooled(bags)

    def input_dist(_: Any, given: KeyedJaggedTensor) -> KeyedJaggedTensor:
        return given

    def compute_and_output_dist(context: Any, given: KeyedJaggedTensor) -> KeyedTensor:
        if given.keys() != look_up.features or given.variable_stride_per_key():
            distributed = kind.input_dist(bags, context, given)
            return kind.compute_and_output_dist(bags, context, distributed)
        return KeyedTensor(
            keys=names,
            length_per_key=widths,
            values=look_up(*parts(given, is_weighted=look_up.is_weighted)),
            offset_per_key=starts,
            index_per_key=positions,
        )

    bags.input_dist = input_dist
    bags.compute_and_output_dist = compute_and_output_dist
    return bags


class Pooled:
    """The lookups of a collection that `why_not` has nothing against, in the order of its shards.

    Ids [N], offsets [F * B + 1] and weights [N] -> [B, D].
    """

    def __init__(self, bags: Any) -> None:
        groups = bags.tbes_configs().values()
        self.features = [name for group in groups for name in group.feature_names()]
        self.is_weighted = any(group.is_weighted for group in groups)
        self._parts: Part | SpreadPart
        spread = spread_of(bags)
        if spread:
            (site,) = spread.sites
            self._parts = SpreadPart(site, spread.leader)
        else:
            self._parts = Part(bags.tbes_configs())

    def __call__(
        self, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Look up."""
        return self._parts(ids, offsets, weights)


class Part:
    """Pooled lookups of this process, side by side."""

    def __init__(self, groups: Mapping[Any, Any]) -> None:
        """Bind to operators.

        Args:
            groups: operator -> TorchRec's configuration of its tables.
        """
        self._lookups = list(map(lookup, groups))
        self._counts = list(accumulate(group.num_features() for group in groups.values()))

    def __call__(
        self, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Look up, as `Pooled` does."""
        if len(self._lookups) == 1:
            return self._lookups[0](ids, offsets, weights)
        # Each lookup gets all ids, and where those of its own features start and end.
        rows = (offsets.numel() - 1) // self._counts[-1]
        ends = [0, *(rows * count for count in self._counts)]
        return torch.cat(
            [
                call(ids, offsets[start : end + 1], weights)
                for call, (start, end) in zip(self._lookups, pairwise(ends), strict=True)
            ],
            dim=1,
        )


class SpreadPart:
    """Pooled lookups of several ranks, side by side, asked by the one that leads."""

    def __init__(self, site: Site, leader: Leader) -> None:
        """Bind to a collection's only site."""
        self._site, self._leader = site, leader
        own = leader.ranks.own
        here = site.parts.get(own)
        self._own = Part(here.get_tbes_to_register()) if here else None
        self._counts = list(accumulate(map(site.count, site.parts)))
        self._features = [name for rank in site.parts for name in site.features(rank)]

    def __call__(
        self, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Look up, as `Pooled` does."""
        site, here = self._site, self._leader.ranks.own
        lists = self._by_rank(ids, offsets, weights)
        found = look_up_on_all(site, self._leader, lists, lambda: self._look_up(lists[here]))
        if (ahead := forward_calls()) is not None:
            ahead.features = KeyedJaggedTensor(
                keys=self._features, values=ids, offsets=offsets, weights=weights
            )
            kind = ids.dtype
            ask_ahead(
                site.collection,
                lambda next_: [
                    self._by_rank(next_.values(), next_.offsets().to(kind), next_.weights_or_none())
                ],
            )
        return torch.cat([found[rank] for rank in site.parts], dim=1)

    def _by_rank(
        self, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> dict[int, Lists]:
        here = self._leader.ranks.own
        rows = (offsets.numel() - 1) // self._counts[-1]
        ends = [0, *(rows * count for count in self._counts)]
        first = offsets[ends].tolist()
        lists: dict[int, Lists] = {}
        for rank, (start, end), (low, high) in zip(
            self._site.parts, pairwise(ends), pairwise(first), strict=True
        ):
            own = rank == here  # whose lookups take all ids
            lists[rank] = (
                ids if own else ids[low:high],
                offsets[start : end + 1] - (0 if own else low),
                weights if own or weights is None else weights[low:high],
            )
        return lists

    def _look_up(self, lists: Lists) -> torch.Tensor:
        assert self._own is not None  # noqa: S101  called where there are tables
        return self._own(*lists)


def follow(site: Site, rank: int) -> Lookup | None:
    """What a follower looks up at a site; None where that takes TorchRec's own module."""
    operators = site.parts[rank].get_tbes_to_register()
    if any(map(_why_not, operators)) or not (site.is_pooled or len(operators) == 1):
        return None
    return Part(operators)


def sequences(collection: Any) -> tuple[list[str], Lookup] | None:
    """Features and lookup [N, D] of an EmbeddingCollection, where one operator holds all tables."""
    if type(collection) not in SEQUENCES or spread_of(collection):
        return None
    if len(collection.tbes_configs()) != 1:
        return None
    ((operator, group),) = collection.tbes_configs().items()
    tables = group.embedding_tables
    is_whole = all(table.local_rows == table.num_embeddings for table in tables)
    if not is_whole or group.is_weighted or _why_not(operator):
        return None
    return group.feature_names(), lookup(operator)


def parts(
    features: KeyedJaggedTensor, *, is_weighted: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids, offsets and weights, as a lookup takes them."""
    ids = features.values()
    return ids, features.offsets().to(ids.dtype), features.weights() if is_weighted else None


def lookup(operator: Any, *, room: int = 0, dtype: torch.dtype | None = None) -> Lookup:
    """FBGEMM's operator, bound to all that its module gives it at every call.

    Args:
        operator: the module, with its rows.
        room: columns to leave open at the left of the result, which gets as much wider.
        dtype: of the result; None for the operator's own.
    """
    call = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function.default
    tables = (
        operator.weights_host,
        operator.weights_uvm,
        operator.weights_placements,
        operator.weights_offsets,
        operator.weights_tys,
        operator.D_offsets + room,
        operator.total_D + room,
        operator.max_int2_D,
        operator.max_int4_D,
        operator.max_int8_D,
        operator.max_float16_D,
        operator.max_float32_D,
    )
    pooling = int(operator.pooling_mode)
    rest = (
        SparseType.from_dtype(dtype).as_int() if dtype else operator.output_dtype,
        operator.lxu_cache_weights,
        None,
        operator.row_alignment,
        operator.max_float8_D,
        operator.fp8_exponent_bits,
        operator.fp8_exponent_bias,
    )

    check = (operator.bounds_check_mode_int, operator.bounds_check_warning)
    is_checked = operator.bounds_check_mode_int != BoundsCheckMode.NONE.value
    rows, version = operator.rows_per_table, operator.bounds_check_version

    def run(ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        if is_checked:
            torch.ops.fbgemm.bounds_check_indices(
                rows, ids, offsets, *check, weights, bounds_check_version=version
            )
        found: torch.Tensor = call(*tables, ids, offsets, pooling, weights, *rest)
        return found

    watch = vars(operator).get(WATCH)
    if watch is None:
        return run

    def watched(
        ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        watch(ids, offsets)
        return run(ids, offsets, weights)

    return watched


def watch_lookups(operator: Any, watch: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Let something be told of ids and offsets before each lookup, by kernels and without.

    Args:
        operator: FBGEMM's, that no kernel was bound to yet.
        watch: called with ids [N] and offsets [F * B + 1].
    """
    own = operator.forward

    def forward(
        indices: torch.Tensor,
        offsets: torch.Tensor,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        watch(indices, offsets)
        found: torch.Tensor = own(indices, offsets, per_sample_weights)
        return found

    operator.forward = forward
    setattr(operator, WATCH, watch)
