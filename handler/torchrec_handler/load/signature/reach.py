"""Which ids come to the tables as they were sent.

Only those are limited by a table's rows: a model that hashes or remaps ids takes any, and what it
makes of them is checked before it is looked up.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torchrec.quant.embedding_modules import (
    MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import FactoryError, InvalidRequest

MOST_ROWS = 2**31 - 1
"""Of a table: FBGEMM and the requests' formats count them in 32 bits."""
LEAST_TAG = 1_000_003
"""No hash of a small table leaves such an id as it is."""
PROCESSORS = ("_feature_processors", "feature_processor", "feature_processors_per_rank")
"""What collections have that give each id a weight of their own."""


@dataclass(frozen=True, kw_only=True)
class Collections:
    """A module's embedding collections, as they were before sharding."""

    of_path: Mapping[str, Mapping[str, int]]
    """Path of a collection -> feature -> rows of its table; of the smallest one if it has several.
    Managed collision finds a row for any id, so collections behind it are not here."""
    longest: Mapping[str, int]
    """Feature -> how many ids of a list have a weight for their position."""
    weighted: frozenset[str] = frozenset()
    """Paths of those that read weights, or make their own."""

    @property
    def rows(self) -> dict[str, int]:
        """Feature name -> rows of the smallest table that it is looked up in."""
        least: dict[str, int] = {}
        for features in self.of_path.values():
            for feature, rows in features.items():
                least[feature] = min(rows, least.get(feature, rows))
        return least

    @property
    def largest(self) -> dict[str, int]:
        """Feature name -> rows of the largest table that it is looked up in."""
        most: dict[str, int] = {}
        for features in self.of_path.values():
            for feature, rows in features.items():
                most[feature] = max(rows, most.get(feature, rows))
        return most

    def beside(self, others: "Collections") -> "Collections":
        """Add collections that are no longer modules of their own."""
        return Collections(
            of_path={**others.of_path, **self.of_path},
            longest={**others.longest, **self.longest},
            weighted=self.weighted | others.weighted,
        )

    def can_be_watched(self, module: torch.nn.Module, device: torch.device) -> bool:
        """Whether ids behind all tables do no harm: all lookups are in collections, on the CPU."""
        paths = tuple(self.of_path) + tuple(
            path
            for path, found in module.named_modules()
            if hasattr(found, "_managed_collision_collection")
        )
        return device.type == "cpu" and not any(
            isinstance(found, torch.jit.ScriptModule)
            or (
                type(found).__module__.startswith("fbgemm_gpu")
                and not any(path.startswith(f"{outer}.") for outer in paths)
            )
            for path, found in module.named_modules()
        )

    def present(self, module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
        """Path -> collection; a part that sharding took away is found where its whole is."""
        seen = set()
        modules = dict(module.named_modules())
        for path in self.of_path:
            while path not in modules:
                path = path.rpartition(".")[0]  # noqa: PLW2901  its whole
            outer = any(path.startswith(f"{other}.") for other in self.of_path)
            if path not in seen and not outer:
                seen.add(path)
                yield path, modules[path]


def find_collections(module: torch.nn.Module) -> Collections:
    """See what a module looks up; must see it before sharding.

    Raises:
        FactoryError: a table has more rows than ids of 32 bits can tell.
    """
    of_path: dict[str, dict[str, int]] = {}
    longest: dict[str, int] = {}
    weighted: set[str] = set()
    managed: list[str] = []
    pruned: dict[str, int] = {}
    for path, found in module.named_modules():
        _add_longest(longest, path, found)
        if hasattr(found, "_managed_collision_collection"):
            managed.append(path)
        if _reads_weights(found):
            weighted.add(path)
        # On a position-weighted collection it is set outside, the configs are inside.
        pruned |= getattr(found, MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT, {})
        configs = getattr(found, "embedding_bag_configs", None) or getattr(
            found, "embedding_configs", None
        )
        features: dict[str, int] = {}
        for config in configs() if callable(configs) else ():
            if config.num_embeddings > MOST_ROWS:
                message = (
                    f"table {config.name!r}: has {config.num_embeddings} rows, expected at most "
                    f"{MOST_ROWS}: lookups count rows in 32 bits; split the table"
                )
                raise FactoryError(message)
            left = getattr(config, "num_embeddings_post_pruning", None) or config.num_embeddings
            for feature in config.feature_names:
                least = min(left, pruned.get(config.name, left))
                features[feature] = min(features.get(feature, least), least)
        if features and not any(path == outer or path.startswith(f"{outer}.") for outer in managed):
            of_path[path] = features
    return Collections(of_path=of_path, longest=longest, weighted=frozenset(weighted))


def _reads_weights(found: Any) -> bool:
    is_weighted = getattr(found, "is_weighted", False)
    is_weighted = is_weighted() if callable(is_weighted) else is_weighted
    return bool(is_weighted) or any(hasattr(found, name) for name in PROCESSORS)


def _add_longest(longest: dict[str, int], path: str, found: Any) -> None:
    of_features = getattr(found, "max_feature_lengths", None)
    weight = getattr(found, "position_weight", None)
    if isinstance(of_features, Mapping):
        longest.update(of_features)
    elif isinstance(weight, torch.Tensor):
        longest[path.rpartition(".")[2]] = weight.numel()


@dataclass(frozen=True, kw_only=True)
class Tags:
    """An id for each sparse feature, each another one, behind all tables."""

    values: Mapping[str, torch.Tensor]
    """Input name -> [F] ids."""
    places: Mapping[int, tuple[str, int]]
    """Id -> the input, and the position of the feature that it is sent for."""

    @classmethod
    def of(cls, inputs: Sequence[InputSignature], collections: Collections) -> "Tags | None":
        """Make them; None where there is nothing to tell or no room behind the tables."""
        next_tag = max([LEAST_TAG, *collections.rows.values()])
        values: dict[str, torch.Tensor] = {}
        places: dict[int, tuple[str, int]] = {}
        for entry in inputs:
            if any(rows is not None for rows in entry.ids_below):
                ids = range(next_tag, next_tag + len(entry.ids_below))
                values[entry.name] = torch.tensor(ids)
                places |= {tag: (entry.name, position) for position, tag in enumerate(ids)}
                next_tag = ids[-1] + 1
        return cls(values=values, places=places) if values and next_tag < MOST_ROWS else None


@dataclass(kw_only=True, eq=False)
class Reached:
    """What collections were given."""

    collections: Collections
    tags: Tags | None
    ids: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """(path, feature) -> ids."""
    weighted: dict[str, list[str]] = field(default_factory=dict)
    """Path of a collection that does not read weights -> features that came with some."""

    def note(self, path: str, given: KeyedJaggedTensor) -> None:
        """Keep what a collection is given."""
        if given.weights_or_none() is not None and path not in self.collections.weighted:
            self.weighted[path] = list(given.keys())
        if self.tags is not None:
            ends = torch.tensor(given.length_per_key()).cumsum(0).tolist()
            ids = given.values().tolist()
            for key, end, count in zip(given.keys(), ends, given.length_per_key(), strict=True):
                self.ids.setdefault((path, key), set()).update(ids[end - count : end])

    def unread_weights(self) -> Iterator[str]:
        """What to say of weights that change nothing."""
        for path, features in self.weighted.items():
            yield (
                f"{path}: is given weights of {', '.join(features)}, but has is_weighted=False, so "
                "they change nothing, here as in training; if they should, give the collection "
                "is_weighted=True"
            )

    def has_others(self, tags: Tags) -> bool:
        """Whether collections were given ids that nobody sent."""
        return any(not ids <= tags.places.keys() for ids in self.ids.values())

    def limits(
        self,
        inputs: Sequence[InputSignature],
        tags: Tags,
        keys: Mapping[str, Mapping[int, Sequence[str]]],
    ) -> tuple[InputSignature, ...]:
        """Inputs whose features are limited by the tables that their own ids came to.

        A feature that came to no table under any of its names keeps the limit of its name.
        """
        least: dict[tuple[str, int], int] = {}
        for (path, key), ids in self.ids.items():
            rows = self.collections.of_path.get(path, self.collections.rows).get(key)
            rows = self.collections.rows.get(key) if rows is None else rows
            for place in (tags.places[tag] for tag in ids if tag in tags.places):
                if rows is not None:
                    least[place] = min(rows, least.get(place, rows))
        seen = {key for _, key in self.ids}
        found = []
        for entry in inputs:
            rows_of = list(entry.ids_below)
            for position, rows in enumerate(entry.ids_below):
                names = keys[entry.name].get(position, ())
                if rows is not None and seen.intersection(names):
                    rows_of[position] = least.get((entry.name, position))
            found.append(replace(entry, ids_below=tuple(rows_of)))
        return tuple(found)


@contextmanager
def watching(
    module: torch.nn.Module, collections: Collections, tags: Tags | None = None
) -> Iterator[Reached]:
    """Note what collections are given, and look zeros up instead of tags."""
    reached = Reached(collections=collections, tags=tags)

    def watch(path: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name, given = _given(args, kwargs)
            if not isinstance(given, KeyedJaggedTensor):
                return None
            reached.note(path, given)
            if tags is None:
                return None
            return _with(args, kwargs, name, _zeros(given))

        return hook

    with ExitStack() as stack:
        for path, found in collections.present(module):
            if not isinstance(found, torch.jit.ScriptModule):
                handle = found.register_forward_pre_hook(watch(path), with_kwargs=True)
                stack.callback(handle.remove)
        yield reached


def lets_rows_pass(signature: Signature) -> bool:
    """Whether lookups may meet rows that no check of a request has seen.

    Those of a model that makes them itself, of a method that is given its arguments as they came,
    and of features whose tables are not known.
    """
    return (
        signature.changes_ids
        or not all(signature.methods.values())
        or any(
            "sparse" in entry.type and (not entry.ids_below or None in entry.ids_below)
            for entry in signature.inputs
        )
    )


def guard(module: torch.nn.Module, collections: Collections) -> None:
    """Let collections refuse rows that they do not have: native lookups read past their tables.

    It is the request's fault, whose ids the model made these rows of.
    """

    def check(features: Mapping[str, int]) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _, given = _given(args, kwargs)
            if isinstance(given, KeyedJaggedTensor):
                _check(given, features)

        return hook

    for path, found in collections.present(module):
        features = collections.of_path.get(path) or collections.rows
        if not isinstance(found, torch.jit.ScriptModule):
            found.register_forward_pre_hook(check(features), with_kwargs=True)


def _check(given: KeyedJaggedTensor, features: Mapping[str, int]) -> None:
    values = given.values()
    any_row = torch.iinfo(torch.int64).max
    rows = torch.tensor([features.get(key, any_row) for key in given.keys()])  # noqa: SIM118
    counts = torch.tensor(given.length_per_key())
    limit = rows.repeat_interleave(counts).to(values.device)
    bad = (values < 0) | (values >= limit)
    if bad.any():
        position = int(bad.int().argmax())
        key = given.keys()[int((counts.cumsum(0) <= position).sum())]
        message = (
            f"feature {key!r}: the model made the row {int(values[position])} of its ids, "
            f"its table has {features[key]} rows"
        )
        raise InvalidRequest(message)


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Any]:
    """The first argument, and its name where it was given by name."""
    if args:
        return None, args[0]
    return next(iter(kwargs.items()), (None, None))


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None, value: Any) -> Any:
    return ((value, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: value})


def _zeros(given: KeyedJaggedTensor) -> KeyedJaggedTensor:
    zeros = copy.copy(given)
    zeros._values = torch.zeros_like(given.values())  # noqa: SLF001  all else stays as it is
    zeros._jt_dict = None  # noqa: SLF001
    return zeros
