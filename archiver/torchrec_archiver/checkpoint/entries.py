"""What a checkpoint of any format holds: named tensors that are read when they are wanted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from torchrec_archiver.checkpoint.pieces import Piece, check_same, join
from torchrec_archiver.checkpoint.saved import Wrapper, pieces_of
from torchrec_handler.errors import BuildError

RANKS_OWN = ("running_mean", "running_var", "num_batches_tracked")
"""What each rank of a data-parallel BatchNorm counts for itself; the first rank's are served."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    """Maps it; puts it together where it is in pieces."""
    part: str = ""
    """The dict that it was in, by its keys with dots between; empty for the outermost."""

    @property
    def within(self) -> Callable[[str], str]:
        """Its name -> its name in the dict that it was in."""
        return lambda name: name.removeprefix(f"{self.part}.") if self.part else name


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a checkpoint holds."""

    entries: Mapping[str, Entry]
    """Name, the keys of the dicts around it included, with dots between -> tensor."""
    others: Sequence[str] = field(default=())
    """Names of what is no tensor."""

    def under(self, key: str) -> "Checkpoint":
        """Take one part, and its names without `key.` in front.

        Raises:
            BuildError: there is no such part.
        """
        prefix = f"{key}."
        entries = {
            name.removeprefix(prefix): replace(
                entry,
                part=f"{entry.part}.".removeprefix(prefix).removesuffix(".")
                if f"{entry.part}.".startswith(prefix)
                else "",
            )
            for name, entry in self.entries.items()
            if name.startswith(prefix)
        }
        if not entries:
            parts = {entry.part for entry in self.entries.values() if entry.part}
            parts |= {name.partition(".")[0] for name in self.entries}
            message = (
                f"weights-key: nothing is under {key!r}; the checkpoint has "
                f"{', '.join(sorted(parts)[:20])}"
            )
            raise BuildError(message)
        return Checkpoint(
            entries=entries,
            others=[name.removeprefix(prefix) for name in self.others if name.startswith(prefix)],
        )

    def without(self, patterns: Sequence[str]) -> "Checkpoint":
        """Leave entries out by `fnmatch` patterns of their names.

        Raises:
            BuildError: a pattern matches nothing.
        """
        inner = {name: entry.within(name) for name, entry in self.entries.items()}
        inner |= {name: name for name in self.others}
        ignored = set()
        for pattern in patterns:
            found = {
                name
                for name, short in inner.items()
                if fnmatchcase(name, pattern) or fnmatchcase(short, pattern)
            }
            if not found:
                message = (
                    f"ignore-weights: {pattern!r} matches no entry; the first entries are "
                    f"{', '.join(list(self.entries)[:3])}"
                )
                raise BuildError(message)
            ignored |= found
        return Checkpoint(
            entries={name: e for name, e in self.entries.items() if name not in ignored},
            others=[name for name in self.others if name not in ignored],
        )

    def renamed(self, prefixes: Mapping[str, str]) -> "Checkpoint":
        """Replace prefixes of names: OLD -> NEW, the longest OLD that fits; other names stay.

        An OLD is looked for in whole names, and in the names inside of the innermost dict.

        Raises:
            BuildError: an OLD fits no name, or two entries would have one name.
        """
        entries: dict[str, Entry] = {}
        unused = set(prefixes)
        for name, entry in self.entries.items():
            new = name
            for start, rest in ("", name), (f"{entry.part}.", entry.within(name)):
                old = max((old for old in prefixes if rest.startswith(old)), key=len, default=None)
                if old is not None:
                    unused.discard(old)
                    new = start + prefixes[old] + rest.removeprefix(old)
                    break
            if new in entries:
                message = f"weights-map: two entries would be called {new}, one of them {name}"
                raise BuildError(message)
            entries[new] = entry
        if unused:
            message = (
                f"weights-map: no entry starts with {', '.join(map(repr, sorted(unused)))}; "
                f"the first entries are {', '.join(list(self.entries)[:3])}"
            )
            raise BuildError(message)
        return replace(self, entries=entries)


def from_tensors(found: Mapping[Path, Any], scratch: Path) -> Checkpoint:
    """Make a checkpoint of nested containers of tensors.

    Args:
        found: file -> what was in it, as `load_saved` gives it; several are the files of the ranks
            of one job, whose pieces and names complete each other.
        scratch: a folder for tensors that are in pieces.

    Raises:
        BuildError: a file holds no dict, or two entries would have one name.
    """
    values: dict[str, list[tuple[Path, torch.Tensor]]] = {}
    parts: dict[str, str] = {}
    others: dict[str, None] = {}
    for file, content in found.items():
        if not isinstance(content, Mapping):
            message = (
                f"weights: {file} holds a {type(content).__name__}, expected a state_dict: a dict "
                "of names and tensors, or a dict with one in it"
            )
            raise BuildError(message)
        here = set()
        for keys, value in _leaves(content):
            name = ".".join(keys)
            if not isinstance(value, torch.Tensor):
                others[name] = None
                continue
            if name in here:
                message = f"weights: {file} holds two entries that are called {name}"
                raise BuildError(message)
            here.add(name)
            parts[name] = ".".join(keys[:-1])
            values.setdefault(name, []).append((file, value))
    entries = {
        name: Entry(
            shape=tuple(held[0][1].shape),
            read=_reader(name, held, scratch / f"{number}.bin"),
            part=parts[name],
        )
        for number, (name, held) in enumerate(values.items())
    }
    return Checkpoint(entries=entries, others=list(others))


def _reader(
    name: str, held: list[tuple[Path, torch.Tensor]], file: Path
) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        first_file, first = held[0]
        if isinstance(first, Wrapper):
            pieces: list[Piece] = []
            for path, tensor in held:
                if not isinstance(tensor, Wrapper) or tensor.shape != first.shape:
                    message = (
                        f"weights: {name} is sharded in {first_file}, and in {path} of another "
                        "shape, or whole"
                    )
                    raise BuildError(message)
                pieces += pieces_of(name, tensor, path)
            files = f"{len(held)} files of {first_file.parent}"
            where = files if len(held) > 1 else str(first_file)
            return join(name, first, pieces, where, file)
        if not name.endswith(RANKS_OWN):
            for path, tensor in held[1:]:
                check_same(name, first, first_file, tensor, path)
        return first.detach()

    return read


def _leaves(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, (*keys, str(key)))
    elif isinstance(content, list | tuple) and any(
        isinstance(value, torch.Tensor | Mapping | list | tuple) for value in content
    ):
        for number, value in enumerate(content):
            yield from _leaves(value, (*keys, str(number)))
    else:
        yield keys, content
