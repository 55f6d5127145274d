"""What the archive's samples give at a generation, for its delta to say it."""

import logging
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch

from torchrec_archiver.answer import options_of
from torchrec_archiver.deltas.chain import State
from torchrec_handler.archive.delta import MOST_DENSE_BYTES, Outputs, TableRows
from torchrec_handler.archive.format import SAMPLES, TABLES
from torchrec_handler.archive.samples import Sample, read_samples
from torchrec_handler.load.loader import load
from torchrec_handler.load.rehearsal import Rehearsal
from torchrec_handler.load.self_test import check_kind
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Kernels

CPU = torch.device("cpu")

logger = logging.getLogger(__name__)


def samples_of(state: State) -> list[Sample]:
    """Those that the archive was recorded with.

    Raises:
        ArchiveError: they cannot be read.
    """
    base = state.base
    return read_samples(base.folder / SAMPLES) if base.index.samples else []


class Answers:
    """The archive's model, asked for what it gives behind a state, without kernels."""

    def __init__(self, state: State) -> None:
        """Prepare it; it is loaded when it is first asked, in a process group that it may use."""
        self._state = state

    @cached_property
    def _samples(self) -> list[Sample]:
        return samples_of(self._state)

    @cached_property
    def _rehearsal(self) -> Rehearsal:
        folder = self._state.base.folder
        update = {"kernels": Kernels(off="all"), "self_test": False}
        options = options_of(folder).model_copy(update=update)
        return Rehearsal(load(folder, options, CPU), options, folder / TABLES)

    @cached_property
    def _model(self) -> Predictor:
        return self._rehearsal.make(self._state.dense)

    def __call__(
        self, tables: Iterable[TableRows], dense: Mapping[str, torch.Tensor]
    ) -> Outputs | None:
        """What the samples give.

        Args:
            tables: rows that have changed since the state, later ones go before earlier ones.
            dense: weights that have.

        Returns:
            None where the archive has no samples, or they give more than a delta may hold.

        Raises:
            LoadError: the model cannot be loaded, raises, or gives what a worker would not serve.
        """
        if not self._samples:
            return None
        state = self._state
        model = self._rehearsal.make({**state.dense, **dense}) if dense else self._model
        changed = [*state.merged.tables.values(), *tables]
        outputs = self._rehearsal.outputs(model, self._samples, changed)
        for sample, found in zip(self._samples, outputs, strict=True):
            check_kind(sample, found)
        size = sum(value.nbytes for one in outputs for parts in one.values() for value in parts)
        if size > MOST_DENSE_BYTES:
            logger.warning(
                "outputs: those of the samples take %.0f MB, of which a delta may hold %.0f, and "
                "are left out",
                size / 1e6,
                MOST_DENSE_BYTES / 1e6,
            )
            return None
        return outputs
