"""A delta of a checkpoint: the rows that differ once they are encoded, and the weights that do."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from torchrec_archiver.answer import options_of
from torchrec_archiver.deltas.answers import Answers
from torchrec_archiver.deltas.base import Base
from torchrec_archiver.deltas.chain import State, read_chain, state_of
from torchrec_archiver.deltas.comparing import changed_rows
from torchrec_archiver.deltas.writing import UNSIGNED, Signer, publish, split
from torchrec_archiver.fit import TRAINING_ONLY
from torchrec_archiver.locked import locked_folder
from torchrec_archiver.model import WeightsOf, fit_weights
from torchrec_handler.archive.delta import TableRows
from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import BuildError
from torchrec_handler.load.package import open_package
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.ranks import init_process_group

SCRATCH = "torchrec-checkpoint-"
MAX_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was published."""

    paths: Sequence[Path]
    """In the order of their generations; none where nothing differs."""
    rows: Mapping[TableKey, int]
    """How many differ, of those tables that have any."""
    dense: Sequence[str]
    """Names of the weights that differ."""


def make_delta(  # noqa: PLR0913  the command line's options
    base: Base,
    weights: WeightsOf,
    folder: Path,
    *,
    after: int | None = None,
    max_rows: int | None = MAX_ROWS,
    keys: Sequence[Path] = (),
    signer: Signer = UNSIGNED,
    with_outputs: bool = True,
    progress: bool = False,
) -> Made:
    """Publish what is between a generation and a checkpoint.

    Rows are encoded block by block, as `build` does it, so a checkpoint may be larger than memory.

    Args:
        base: the archive, whose factory is run to tell which weight is which.
        weights: the checkpoint, and how to read it.
        folder: where deltas are published.
        after: the generation; None for the newest in the folder.
        max_rows: of a delta; what has more becomes several generations. None: one of any size.
        keys: public keys, of which one has to have signed the deltas before it.
        signer: who signs it.
        with_outputs: whether to ask the archive's samples, and let each delta say what they give.
        progress: whether to show bars.

    Raises:
        BuildError: the checkpoint does not fit, holds what cannot be served, or the folder does not
            lead to the generation.
        DeltaError: a delta before it is damaged; a server would refuse it.
        LoadError: the archive's code cannot be run, or gives to samples what is not served.
    """
    state = state_of(base, read_chain(folder, base, after, keys))
    with (
        unchanged_process(),
        locked_folder(Path(tempfile.gettempdir()), SCRATCH) as scratch,
    ):
        init_process_group()
        fitted = fit_weights(
            open_package(base.package),
            lambda: weights.read(scratch),
            options_of(base.folder),
            (),
            progress=progress,
        )
        dense = changed_dense(fitted.dense, state)
        rows: dict[TableKey, int] = {}

        def counted() -> Iterator[TableRows]:
            for block in changed_rows(fitted.rows, state, progress=progress):
                rows[block.key] = rows.get(block.key, 0) + len(block.ids)
                yield block

        pieces = split(counted(), dense, state, max_rows)
        answers = Answers(state) if with_outputs else None
        paths = publish(folder, state, pieces, signer=signer, answers=answers)
    return Made(paths=paths, rows=rows, dense=list(dense))


def changed_dense(dense: Mapping[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
    """The weights that differ from a state's, in the archive's types, but for training's own.

    Raises:
        BuildError: one has another shape, or the archive has others.
    """
    own = state.dense
    if odd := sorted(dense.keys() - own.keys()):
        message = f"weights: {odd[0]} is not one of the archive's dense weights"
        raise BuildError(message)
    changed = {}
    for name, value in dense.items():
        if name.rsplit(".", 1)[-1] in TRAINING_ONLY:
            continue
        if value.shape != own[name].shape:
            message = (
                f"weights: {name}: received shape {tuple(value.shape)}, expected "
                f"{tuple(own[name].shape)}; build a new archive"
            )
            raise BuildError(message)
        given = value.detach().to("cpu", own[name].dtype)
        if not _is_same(given, own[name]):
            changed[name] = given.clone()  # training goes on
    return changed


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit."""
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )
