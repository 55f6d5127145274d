"""What is found of a module's embedding collections: values, which whoever asked goes on with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)

from torchrec_handler.archive.format import TableKey

Kind = Literal["float", "quantized", "sharded", "other", "hidden"]
"""To be quantized; TorchRec's own quantized ones, which can be sharded; sharded; what is looked up
as it is; what a factory traced or scripted, so that it is no module any more."""

TABLES = ("embedding_bags", "embeddings")
"""Children of float and quantized collections that hold a module for each table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """One table of a collection."""

    key: TableKey
    """A quantized collection takes the float one's place."""
    parameter: str
    """Its path in the predict module, which is its key in a checkpoint."""
    features: tuple[str, ...]
    """Those that are looked up in it, as far as the collection tells."""
    rows: int | None
    """How many a lookup has, of a pruned table those that are left; None where nothing tells."""
    owner: Any = None
    """The module whose `weight` it is; None where a collection keeps its rows elsewhere."""
    config: Any = None
    """TorchRec's EmbeddingBagConfig or EmbeddingConfig, where there is one."""

    @property
    def weight(self) -> torch.Tensor:
        """Of a float table [rows, D], with those that were pruned."""
        weight: torch.Tensor = self.owner.weight
        return weight


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """One FBGEMM operator of a quantized or sharded collection."""

    collection: str
    """Path of the collection in the predict module."""
    operator: IntNBitTableBatchedEmbeddingBagsCodegen
    first_rows: tuple[int, ...]
    """Per table of the operator, which row of the whole table its shard starts at."""
    rank: int = 0
    """Of a sharded collection, which device of its plan the operator is for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """One embedding collection."""

    path: str
    """In the predict module."""
    module: Any
    kind: Kind
    is_managed: bool = False
    """Whether managed collision finds a row for any id."""
    is_weighted: bool = False
    """Whether it reads the weights of its ids, or makes its own."""
    is_processed: bool = False
    """Whether it makes a weight for each id itself, by its position."""
    tables: tuple[Table, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    ids_below: Mapping[str, int] = field(default_factory=dict)
    """Feature -> rows of its table; of the smallest one if it has several. None of those that
    managed collision stands in front of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collections:
    """All embedding collections of a module, in its order."""

    found: tuple[Collection, ...]
    longest: Mapping[str, int] = field(default_factory=dict)
    """Feature -> how many ids of a list have a weight for their position."""

    @cached_property
    def by_path(self) -> dict[str, Collection]:
        """Path -> collection."""
        return {one.path: one for one in self.found}

    @cached_property
    def limited(self) -> dict[str, Mapping[str, int]]:
        """Path -> feature -> rows, of the collections whose ids have to be rows of their tables."""
        return {one.path: one.ids_below for one in self.found if one.ids_below}

    @cached_property
    def ids_below(self) -> dict[str, int]:
        """Feature -> rows of the smallest table that it is looked up in."""
        return self._rows(min)

    @cached_property
    def largest(self) -> dict[str, int]:
        """Feature -> rows of the largest table that it is looked up in."""
        return self._rows(max)

    def _rows(self, choose: Any) -> dict[str, int]:
        chosen: dict[str, int] = {}
        for features in self.limited.values():
            for feature, rows in features.items():
                chosen[feature] = choose(rows, chosen.get(feature, rows))
        return chosen

    @cached_property
    def float_tables(self) -> tuple[Table, ...]:
        """Every table that will be quantized."""
        return tuple(table for one in self.of_kind("float") for table in one.tables)

    @cached_property
    def lookups(self) -> tuple[Lookup, ...]:
        """The lookups of every quantized collection, sharded or not."""
        return tuple(lookup for one in self.found for lookup in one.lookups)

    @property
    def is_sharded(self) -> bool:
        """Whether one of them is."""
        return bool(self.of_kind("sharded"))

    def of_kind(self, kind: Kind) -> list[Collection]:
        """Those of one kind."""
        return [one for one in self.found if one.kind == kind]

    def parameter(self, key: TableKey) -> str:
        """A table's path in the predict module."""
        tables = self.by_path[key.collection].tables
        return next(table.parameter for table in tables if table.key == key)

    def hold_rows(self, name: str) -> bool:
        """Whether a name in the module's `state_dict` is one of a table's rows."""
        return any(
            is_inside(name, one.path)
            and not {*TABLES, "tbes"}.isdisjoint(name[len(one.path) :].split("."))
            for one in self.found
            if one.lookups or (one.kind == "float" and one.tables)
        )

    def hold_all_lookups(self, module: torch.nn.Module) -> bool:
        """Whether the module looks nothing up beside them, and shows all that it does."""
        paths = [one.path for one in self.found if one.ids_below or one.is_managed]
        return not any(
            isinstance(part, torch.jit.ScriptModule)
            or (
                type(part).__module__.startswith("fbgemm_gpu")
                and not any(is_inside(path, outer) for outer in paths)
            )
            for path, part in module.named_modules()
        )

    def limited_in(self, module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
        """Path -> what takes a limited collection's ids in a module that was sharded since.

        A part that sharding took away is found where its whole is.
        """
        seen = set()
        modules = dict(module.named_modules())
        for path in self.limited:
            while path not in modules:
                path = path.rpartition(".")[0]  # noqa: PLW2901  its whole
            if path not in seen and not any(is_inside(path, other) for other in self.limited):
                seen.add(path)
                yield path, modules[path]

    def beside(self, others: "Collections") -> "Collections":
        """Add collections that are no longer modules of their own."""
        hidden = [
            replace(one, kind="hidden", tables=(), lookups=())
            for one in others.found
            if one.path not in self.limited
        ]
        return Collections(found=(*hidden, *self.found), longest={**others.longest, **self.longest})


def is_inside(path: str, outer: str) -> bool:
    """Whether a module is a part of another, by their paths; the whole has an empty one."""
    return path != outer and (not outer or path.startswith(f"{outer}."))
