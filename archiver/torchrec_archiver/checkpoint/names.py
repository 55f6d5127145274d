"""Which names of a checkpoint are the model's: wrappers and prefixes found by what fits.

Training wraps a model in other modules and a state dict in other dicts, each of which leaves its
name in the checkpoint's names. Everything here is decided by the names that the model expects.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torchrec_archiver.checkpoint.entries import Checkpoint
from torchrec_handler.errors import BuildError

WRAPPERS = frozenset(
    {
        "module",  # DistributedDataParallel, DataParallel, DistributedModelParallel
        "_orig_mod",  # torch.compile
        "_dmp_wrapped_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    }
)
"""Names of the one child of a module that wraps another; they do not count."""

NOT_MODEL = frozenset(
    {"optimizer", "optimizers", "optim", "opt", "optimizer_state", "optimizer_states"}
    | {"optimizer_state_dict", "optim_state_dict", "fused_optimizer", "lr_scheduler"}
    | {"lr_schedulers", "lr_scheduler_state_dict", "scheduler", "schedulers"}
    | {"scheduler_state_dict", "scaler", "grad_scaler", "amp", "callbacks", "loops"}
    | {"hyper_parameters", "rng_state", "rng_states", "random_state", "cuda_rng_state"}
    | {"train_state", "dataloader", "dataloaders", "epoch", "step", "global_step", "iteration"}
)
"""Keys of what a training job saves beside a model's weights."""

_Prefixes = dict[str, dict[int, list[str]]]
"""Prefix, wrappers left out -> number of an expected group -> the checkpoint's names for it."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a checkpoint keeps what a model expects."""

    names: Mapping[str, str]
    """Expected name -> the checkpoint's; what is missing is left out."""
    part: str
    """The dict that holds them all."""
    prefix: str
    """What the checkpoint's names have in front of the model's, `model.`, or empty."""
    lacks: str
    """What the model's names have in front of the checkpoint's, or empty."""


def find(required: Sequence[Collection[str]], optional: Collection[str], held: Checkpoint) -> Found:
    """Find the one prefix under which a checkpoint has all that a model expects.

    Args:
        required: groups of the model's names; one of each is enough, the others are tied to it.
        optional: further names of the model's.
        held: the checkpoint.

    Returns:
        Where it is, or where most of it is when nowhere all is.

    Raises:
        BuildError: it is there more than once.
    """
    expected = [name for group in required for name in group] + list(optional)
    drop = WRAPPERS
    if len({_plain(name, drop) for name in expected}) < len(expected):
        drop = frozenset()  # the model itself has modules of such a name
    plain: dict[str, list[str]] = defaultdict(list)
    for name in held.entries:
        plain[_plain(name, drop)].append(name)
    groups = [[_plain(name, drop) for name in group] for group in required]
    prefix, lacks = _locate(groups, plain, held, drop)
    names = {}
    for name in expected:
        if there := plain.get(prefix + _plain(name, drop).removeprefix(lacks)):
            names[name] = _single(there)
    parts = [held.entries[name].part.split(".") for name in names.values()]
    raw = ""
    for name, its in list(names.items())[:1]:
        raw = _raw_prefix(its, _plain(name, drop).removeprefix(lacks), drop)
    return Found(names=names, part=".".join(_common(parts)), prefix=raw, lacks=lacks)


def beside_model(held: Checkpoint, found: Found, name: str) -> bool:
    """Whether an entry is outside of the dict that holds the model, or an optimizer's or such."""
    part = held.entries[name].part
    if not found.part:
        return _beside(name.partition(".")[0])
    inside = f"{part}.".startswith(f"{found.part}.")
    return not inside or _beside(name.removeprefix(f"{found.part}.").partition(".")[0])


def _locate(
    groups: list[list[str]],
    plain: Mapping[str, list[str]],
    held: Checkpoint,
    drop: frozenset[str],
) -> tuple[str, str]:
    """What the checkpoint's names have in front, and what they lack, wrappers left out."""
    common = _common([name.split(".")[:-1] for group in groups for name in group])
    parts = {_plain(entry.part, drop) for entry in held.entries.values()} | {""}
    for depth in range(len(common) + 1):
        lacks = "".join(f"{segment}." for segment in common[:depth])
        cut = [[name.removeprefix(lacks) for name in group] for group in groups]
        prefixes = _prefixes(cut, plain)
        whole = [
            prefix
            for prefix, of in prefixes.items()
            if len(of) == len(groups)
            # Both a prefix too many and one too few: only a dict's key can be told from a name.
            and (not depth or prefix.removesuffix(".") in parts)
        ]
        if whole:
            return _one_of(whole, prefixes, cut, drop), lacks
    prefixes = _prefixes(groups, plain)
    return max(prefixes, key=lambda at: (len(prefixes[at]), -len(at)), default=""), ""


def _prefixes(groups: list[list[str]], plain: Mapping[str, list[str]]) -> _Prefixes:
    owner = {name: number for number, group in enumerate(groups) for name in group}
    found: _Prefixes = defaultdict(lambda: defaultdict(list))
    for name, raw in plain.items():
        segments = name.split(".")
        for at in range(len(segments)):
            tail = ".".join(segments[at:])
            prefix = name.removesuffix(tail)
            if tail in owner and not _beside(prefix):
                found[prefix][owner[tail]] += raw
    return found


def _one_of(
    whole: list[str], prefixes: _Prefixes, groups: list[list[str]], drop: frozenset[str]
) -> str:
    """The only prefix, or an error that lists them as the checkpoint writes them."""
    if not groups:
        return whole[0]
    written = {
        _raw_prefix(name, tail, drop)
        for prefix in whole
        for name in prefixes[prefix][0]
        for tail in groups[0]
        if _plain(name, drop) == prefix + tail
    }
    if len(written) > 1:
        listed = ", ".join(
            prefix.removesuffix(".") or "the outermost" for prefix in sorted(written)
        )
        message = (
            f"weights: {len(written)} parts of the checkpoint fit the predict module: {listed}; "
            "choose one with --weights-key, or leave others out with --ignore-weights"
        )
        raise BuildError(message)
    return whole[0]


def _single(names: list[str]) -> str:
    if len(names) > 1:
        message = (
            f"weights: {' and '.join(sorted(names))} are the same entry of the predict module; "
            "leave one out with --ignore-weights"
        )
        raise BuildError(message)
    return names[0]


def _raw_prefix(name: str, tail: str, drop: frozenset[str]) -> str:
    """What a checkpoint's name has in front of a tail that is written without wrappers."""
    segments = name.split(".")
    wanted = len(tail.split("."))
    while wanted:
        wanted -= segments.pop() not in drop
    return "".join(f"{segment}." for segment in segments)


def _plain(name: str, drop: frozenset[str]) -> str:
    return ".".join(segment for segment in name.split(".") if segment not in drop)


def _beside(name: str) -> bool:
    return bool(NOT_MODEL.intersection(name.lower().split(".")))


def _common(lists: list[list[str]]) -> list[str]:
    """What all lists start with."""
    shared = []
    for segments in zip(*lists, strict=False):
        if len(set(segments)) > 1:
            break
        shared.append(segments[0])
    return shared
