"""What a model is between the steps of loading; each state holds the one before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import BatchingMetadata, QualNameMetadata

from torchrec_handler.archive.format import DenseDtypes, Index, Report, Signature, TableKey
from torchrec_handler.kernels.graph.method import (
    GraphMethod,
)
from torchrec_handler.kernels.graph.part import PartForward
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.package import Package
from torchrec_handler.options import Options
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.exchange import Leader
from torchrec_handler.tables.spread import Site
from torchrec_handler.tables.store import TableStore


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the factory of a package made."""

    package: Package
    options: Options
    device: torch.device
    """Where to serve."""
    output: FactoryOutput
    collections: Collections


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A module that has its dense weights and whose float tables are on `meta`."""

    made: Made
    module: torch.nn.Module
    collections: Collections
    """As they are before quantizing, and what `hidden` was taken out of."""
    own_rows: Mapping[TableKey, torch.Tensor]
    """Float rows [rows, D] that the factory itself brought."""
    hidden: Mapping[str, torch.Tensor]
    """Checkpoint name -> rows [rows, D] of float tables that the factory's transformations took out
    of their collections, by tracing or scripting them: dense weights, which stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The same module, its float collections swapped in place."""

    weighted: Weighted
    collections: Collections
    """As they are before sharding."""
    own_rows: Mapping[TableKey, torch.Tensor]
    """Rows that the factory itself brought, float or encoded."""


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """The same module with sharded collections, whose lookups have their rows."""

    module: torch.nn.Module
    store: TableStore | None
    """None for a module that its factory sharded, and for one without tables."""
    plan: ShardingPlan | None
    """None when nothing was left to shard."""
    sites: Sequence[Site] = ()
    """Lookups that are spread over ranks."""
    is_parallel: bool = False
    """Whether all ranks have to call it together."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model that is ready to serve."""

    module: torch.nn.Module
    signature: Signature
    batching: Mapping[str, BatchingMetadata]
    qualnames: Mapping[str, QualNameMetadata]
    result_metadata: str
    device: torch.device
    tables: TableStore | None
    """None for a module that its factory sharded, and for one without tables."""
    plan: ShardingPlan | None
    """None when nothing was left to shard."""
    report: Report = field(default_factory=Report)
    """What kernels replaced."""
    graphs: Mapping[str, GraphMethod] = field(default_factory=dict)
    """Methods that are computed as graphs, by their names; the module calls them by itself."""
    parts: Mapping[str, PartForward] = field(default_factory=dict)
    """Modules of other methods that are, by their paths in the module."""
    dense: DenseDtypes | None = None
    """What was decided by layer."""
    package: Package | None = None
    """Where the module came from."""
    index: Index | None = None
    """What the archive says of itself; None for a plain one."""
    leader: Leader | None = None
    """What asks the other ranks; None where there are none."""
