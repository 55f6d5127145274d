"""TorchRec's sharded collections, made to give what the unsharded ones give.

TorchRec's own differ in four ways: features come out in the order of the shards, a row-wise
table with MEAN pooling gives the sum of its shards' means, features cannot have batches of their
own, and tables without scales (float32, float16) cannot be sharded, since the sharded state_dict
wants them.

Shapes: B rows, F features, D the sum of all features' widths.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torchrec.distributed.global_settings import get_propogate_device, set_propogate_device
from torchrec.distributed.quant_embedding import (
    QuantEmbeddingCollectionSharder,
    ShardedQuantEmbeddingCollection,
)
from torchrec.distributed.quant_embeddingbag import (
    QuantEmbeddingBagCollectionSharder,
    QuantFeatureProcessedEmbeddingBagCollectionSharder,
    ShardedQuantEmbeddingBagCollection,
    ShardedQuantFeatureProcessedEmbeddingBagCollection,
)
from torchrec.distributed.types import ShardingType
from torchrec.inference.modules import DEFAULT_FUSED_PARAMS
from torchrec.modules.embedding_configs import (
    PoolingType,
    data_type_to_sparse_type,
    dtype_to_data_type,
)
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from torchrec_handler.tables.ahead import forward_calls
from torchrec_handler.tables.once import find_shared
from torchrec_handler.tables.variable_batch import (
    is_variable,
    own_lists,
    pooled_rows,
    with_equal_batches,
)


@contextmanager
def compute_device_everywhere() -> Iterator[None]:
    """Let TorchRec make what it makes on the compute device; else it is CUDA whatever that is."""
    before = get_propogate_device()
    set_propogate_device(True)
    try:
        yield
    finally:
        set_propogate_device(before)


class _Stateless:
    """Tables are no part of its state_dict: `tables` gives the lookups their rows."""

    _has_dists = False
    create_context: Any
    """TorchRec's, mixed in."""

    def _initialize_torch_state(self, **_: Any) -> None:
        """Leave out what TorchRec registers, which fails on tables without scales."""

    def input_dist(self, *args: Any) -> Any:
        """Bring features to their shards; how is made at the first call."""
        if (ahead := forward_calls()) is not None:
            ahead.features = args[1]
            # This very module's: a kernel has copies, of which each has dists of its own.
            ahead.distribute = lambda features: _Stateless.input_dist(
                self, self.create_context(), features
            )
        if self._has_dists:
            return super().input_dist(*args)  # type: ignore[misc]  # mixed in
        with compute_device_everywhere():
            given = super().input_dist(*args)  # type: ignore[misc]  # mixed in
        self._has_dists = True
        return given


class _Bags(_Stateless):
    """What a sharded EmbeddingBagCollection lacks: the features' order, and whole means."""

    def __init__(self, module: Any, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(module, params, *args, **kwargs)  # type: ignore[call-arg]  # mixed in
        configs = module.embedding_bag_configs()
        sharding: Any = self
        received: dict[str, int] = {}
        for found in sharding._sharding_type_device_group_to_sharding.values():  # noqa: SLF001
            received |= zip(found.embedding_names(), found.embedding_dims(), strict=True)
        self._names = list(itertools.chain(*get_embedding_names_by_table(configs)))
        self._widths = [received[name] for name in self._names]
        ends = itertools.accumulate(received.values())
        starts = {name: end - received[name] for name, end in zip(received, ends, strict=True)}
        columns = [
            column
            for name in self._names
            for column in range(starts[name], starts[name] + received[name])
        ]
        self._columns = None if columns == sorted(columns) else torch.tensor(columns)
        # A row-wise mean is the sum of all shards' sums over the number of ids.
        averaged = {
            config.name
            for config in configs
            if config.pooling is PoolingType.MEAN
            and params[config.name].sharding_type == ShardingType.ROW_WISE.value
            and len(params[config.name].sharding_spec.shards) > 1
        }
        for operator, group in sharding.tbes_configs().items():
            if averaged & {table.name for table in group.embedding_tables}:
                operator.pooling_mode = PoolingMode.SUM
        self._means = [
            feature if config.name in averaged else None
            for config in configs
            for feature in config.feature_names
        ]
        self._has_means = bool(averaged)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look pooled embeddings up, in the order of the collection's configs."""
        if is_variable(features):
            return pooled_rows(self.look_up(with_equal_batches(features)), features)
        return self.look_up(features)

    def look_up(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up what has as many lists of each feature."""
        found = super().forward(features)  # type: ignore[misc]  # mixed in
        if self._columns is None and not self._has_means:
            return found
        values = found.values()
        if self._columns is not None:
            self._columns = self._columns.to(values.device)
            values = values.index_select(1, self._columns)
        if self._has_means:
            values = values / self._counts(features).to(values)
        return KeyedTensor(keys=self._names, length_per_key=self._widths, values=values)

    def _counts(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """What to divide by, [B, D]: the ids of a row-wise mean's feature, 1 elsewhere."""
        keys = features.keys()
        lengths = features.lengths().view(len(keys), -1)
        counts = torch.ones(len(self._means), lengths.shape[1], device=lengths.device)
        for position, feature in enumerate(self._means):
            if feature is not None:
                counts[position] = lengths[keys.index(feature)].clamp(min=1)
        widths = torch.tensor(self._widths, device=lengths.device)
        return counts.repeat_interleave(widths, dim=0).T


class ShardedBags(_Bags, ShardedQuantEmbeddingBagCollection):
    """EmbeddingBagCollection; what all rows of a request share is looked up once."""

    def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        configs = module.embedding_bag_configs()
        self._features = [name for config in configs for name in config.feature_names]

    def look_up(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up what has as many lists of each feature."""
        shared = find_shared(features)
        if shared is None:
            return super().look_up(features)
        found = super().look_up(shared.without_copies(features))
        keys = features.keys()
        positions = [keys.index(name) for name in self._features]
        shared.copy_rows(found.values(), positions, self._widths)
        return found


class ShardedProcessedBags(_Bags, ShardedQuantFeatureProcessedEmbeddingBagCollection):
    """FeatureProcessedEmbeddingBagCollection."""


class ShardedSequences(_Stateless, ShardedQuantEmbeddingCollection):
    """EmbeddingCollection."""

    def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        names = get_embedding_names_by_table(module.embedding_configs())
        self._names = list(itertools.chain(*names))

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look sequences of embeddings up, in the order of the collection's configs."""
        variable = is_variable(features)
        found = super().forward(with_equal_batches(features) if variable else features)
        found = {name: found[name] for name in self._names}
        return own_lists(found, features) if variable else found


class _BagsSharder(QuantEmbeddingBagCollectionSharder):
    def shard(
        self,
        module: Any,
        params: Any,
        env: Any,
        device: torch.device | None = None,
        module_fqn: str | None = None,  # noqa: ARG002
    ) -> torch.nn.Module:
        return ShardedBags(module, params, env, _fused_params(module), device=device)


class _ProcessedBagsSharder(QuantFeatureProcessedEmbeddingBagCollectionSharder):
    def shard(
        self,
        module: Any,
        params: Any,
        env: Any,
        device: torch.device | None = None,
        module_fqn: str | None = None,  # noqa: ARG002
    ) -> torch.nn.Module:
        return ShardedProcessedBags(
            module,
            params,
            env,
            _fused_params(module),
            device=device,
            feature_processor=module.feature_processor,
        )


class _SequencesSharder(QuantEmbeddingCollectionSharder):
    def shard(
        self,
        module: Any,
        params: Any,
        env: Any,
        device: torch.device | None = None,
        module_fqn: str | None = None,  # noqa: ARG002
    ) -> torch.nn.Module:
        return ShardedSequences(module, params, env, _fused_params(module), device=device)


def _fused_params(module: Any) -> dict[str, Any]:
    output_dtype = data_type_to_sparse_type(dtype_to_data_type(module.output_dtype()))
    return {**DEFAULT_FUSED_PARAMS, "output_dtype": output_dtype}


SHARDERS = (_BagsSharder(), _ProcessedBagsSharder(), _SequencesSharder())
"""What `shard_quant_model` takes instead of its `DEFAULT_SHARDERS`."""
