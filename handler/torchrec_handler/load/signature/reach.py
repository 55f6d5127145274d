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
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.find import MOST_ROWS

LEAST_TAG = 1_000_003
"""No hash of a small table leaves such an id as it is."""


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
        next_tag = max([LEAST_TAG, *collections.ids_below.values()])
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
        known = self.collections.by_path.get(path)
        if given.weights_or_none() is not None and not (known and known.is_weighted):
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
            anywhere = self.collections.ids_below.get(key)
            rows = self.collections.limited.get(path, {}).get(key, anywhere)
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
        for path, found in collections.limited_in(module):
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

    for path, found in collections.limited_in(module):
        features = collections.limited.get(path, collections.ids_below)
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
