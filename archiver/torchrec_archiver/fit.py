"""Fourth step of building: fit a checkpoint to the predict module by the model's own names."""

import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from torchrec_archiver.checkpoint.entries import Checkpoint
from torchrec_archiver.checkpoint.names import Found, beside_model, find
from torchrec_archiver.progress import bar
from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import BuildError
from torchrec_handler.load.weights import checkpoint_root, dense_state, table_names
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.store import layout

logger = logging.getLogger(__name__)

TRAINING_ONLY = frozenset(
    {
        "_hash_zch_metadata",  # when an id was last seen, for eviction
        "_hash_zch_runtime_meta",
        "_hash_zch_bucket",
        "_mch_counts",
        "_mch_last_access_iter",
        "_current_iter_tensor",
        "_output_segments_tensor",
        "num_batches_tracked",
    }
)
"""Buffers that answers do not depend on: a checkpoint may have them or not."""

BUCKETS = "_hash_zch_bucket"
"""How many buckets ids were hashed to: a module with another number would not find them."""

SHOWN = 3
"""Names that an example gives of many."""

GROUPS = 10
"""How many parts that were left the log names."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint, told apart by where it goes."""

    dense: Mapping[str, torch.Tensor]
    """Checkpoint name -> tensor."""
    rows: Mapping[TableKey, torch.Tensor]
    """Float rows [rows, D]."""


def fit(
    checkpoint: Checkpoint,
    module: torch.nn.Module,
    collections: Collections,
    *,
    progress: bool = False,
) -> Weights:
    """Find every weight of the module in a checkpoint, and say what was taken and left.

    Args:
        checkpoint: see `names.find` for how its names may differ from the module's.
        module: the predict module; its tables may be float, on `meta`, or quantized by the factory,
            a checkpoint holds them in floats.
        collections: those of the module.
        progress: whether to show a bar.

    Raises:
        BuildError: lists every missing, unexpected and wrongly shaped entry at once; or more than
            one part of the checkpoint fits.
    """
    prefix, root = checkpoint_root(module)
    dense = dense_state(module, collections)
    expected = {name: tuple(value.shape) for name, value in dense.items()}
    tables: dict[str, TableKey] = {}
    for name, table in table_names(module, collections).items():
        tables[name] = table.key
        expected[name] = tuple(table.weight.shape)
    for entry in layout(collections):
        name = collections.parameter(entry.key).removeprefix(prefix)
        tables[name] = entry.key
        expected[name] = entry.rows, entry.width
    optional = {
        name for name, own in dense.items() if _last(name) in TRAINING_ONLY and not own.is_meta
    }
    groups = _tied(root, [name for name in expected if name not in optional])
    found = find(groups, optional, checkpoint)
    names = dict(found.names)
    for group in groups:
        if held := [names[name] for name in group if name in names]:
            names |= {name: names.get(name, held[0]) for name in group}
    for name in optional & names.keys() - _named(BUCKETS, names):
        if checkpoint.entries[names[name]].shape != expected[name]:
            del names[name]  # of a module that was trained otherwise than it is served
    wanted = {
        name: shape for name, shape in expected.items() if name not in optional - names.keys()
    }
    left = _check(checkpoint, found, names, wanted)
    read = {}
    with bar("checkpoint", len(set(names.values())), " tensors", shown=progress) as done:
        for name in dict.fromkeys(names.values()):
            read[name] = checkpoint.entries[name].read()
            done.update()
    _check_values(dense, names, read)
    _report(checkpoint, found, names, left)
    return Weights(
        dense={
            name: read[names[name]] if name in names else own.clone() for name, own in dense.items()
        },
        rows={key: read[names[name]] for name, key in tables.items()},
    )


def _tied(root: torch.nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Names of one and the same parameter together: a checkpoint may hold it once."""
    owners = {name: id(value) for name, value in root.named_parameters(remove_duplicate=False)}
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(owners.get(name, name), []).append(name)
    return list(groups.values())


def _check(
    checkpoint: Checkpoint,
    found: Found,
    names: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """See that nothing is missing, nothing of the model's part is left, and all shapes are right.

    Returns:
        What is left: beside the model, and what only training needs.
    """
    entries = checkpoint.entries
    taken = set(names.values())
    left = [name for name in entries if name not in taken]
    unexpected = [
        name
        for name in left
        if not beside_model(checkpoint, found, name) and _last(name) not in TRAINING_ONLY
    ]
    missing = [name for name in expected if name not in names]
    if expected and not names:
        message = (
            f"weights: none of the predict module's {len(expected)} weights is in the checkpoint: "
            f"it has {_first(entries)}, the module {_first(expected)}"
        )
        hint = "is it another model's? For this one's, under other names, see --weights-map"
        raise BuildError(message, hint=hint)
    faults = [f"missing: {name}{_nearest(name, unexpected)}" for name in missing]
    faults += [f"unexpected: {name}{_nearest(name, missing)}" for name in unexpected]
    faults += [
        f"{name}: received shape {entries[names[name]].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in names and entries[names[name]].shape != shape
    ]
    if faults:
        message = "weights: the checkpoint does not fit the predict module\n  " + "\n  ".join(
            sorted(faults)
        )
        raise BuildError(message)
    return left


def _check_values(
    dense: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    read: Mapping[str, torch.Tensor],
) -> None:
    """Refuse what was saved without values, and ids that were hashed to other buckets."""
    if absent := [name for name, value in read.items() if value.is_meta]:
        message = f"weights: {', '.join(absent)} were saved from the meta device, without values"
        raise BuildError(message)
    for name in _named(BUCKETS, names):
        trained, own = read[names[name]], dense[name]
        if not own.is_meta and not torch.equal(trained.to(own.dtype), own):
            message = (
                f"weights: {name}: the checkpoint was trained with total_num_buckets="
                f"{trained.tolist()}, the predict module has {own.tolist()}; ids would be looked "
                "for where they are not"
            )
            raise BuildError(message)


def _report(
    checkpoint: Checkpoint, found: Found, names: Mapping[str, str], left: Sequence[str]
) -> None:
    """Say what was taken and what was left, where a checkpoint was more than the weights."""
    left = [*left, *checkpoint.others]
    if not left and all(name == there for name, there in names.items()):
        return
    said = f"weights: took {len(set(names.values()))} entries"
    if found.prefix:
        said += f" under {found.prefix!r}"
    if found.lacks:
        said += f", as the model's names without {found.lacks!r}"
    parts = Counter(_group(name, found.part) for name in left)
    listed = [f"{part} ({count})" if count > 1 else part for part, count in parts.items()]
    more = f" and {len(listed) - GROUPS} more" if listed[GROUPS:] else ""
    logger.info("%s; left %s%s", said, ", ".join(listed[:GROUPS]) or "nothing", more)


def _group(name: str, part: str) -> str:
    """What the log calls an entry: its own name in the model's part, else that of its part."""
    segments, common = name.split("."), 0
    for own, other in zip(segments, part.split("."), strict=False):
        if own != other:
            break
        common += 1
    if len(segments) <= common + 1 or (part and common == len(part.split("."))):
        return name
    return ".".join(segments[: common + 1]) + ".*"


def _named(last: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if _last(name) == last}


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _first(names: Iterable[str]) -> str:
    several = list(names)
    more = f" and {len(several) - SHOWN} more" if several[SHOWN:] else ""
    return ", ".join(several[:SHOWN]) + more if several else "nothing"


def _nearest(name: str, candidates: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
