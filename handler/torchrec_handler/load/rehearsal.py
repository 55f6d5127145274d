"""The archive's samples asked of rows and dense weights that nothing is served of, and be it yet.

The tables are mapped privately, so that what is written to them stays in this process. Changed rows
are written there just before they are looked up, those that are looked up alone: of a delta of any
size that is some pages. The model is called without kernels and graphs, which look up by themselves
and take longer to make than to save, of so few rows.
Shapes: B rows, F features, K changed rows, N ids.
"""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from torchrec_handler.archive.delta_parts import TableRows
from torchrec_handler.archive.format import TableKey
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import WeightsError
from torchrec_handler.kernels.direct import finds_rows
from torchrec_handler.load.loader import load_again
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.self_test import Outputs, answer
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Kernels, Options
from torchrec_handler.tables.collection import Lookup
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.store import TableStore

MAP_NORESERVE = 0x4000
"""Of Linux's mman.h: most of what is mapped is never written to."""


class Rehearsal:
    """What an archive's samples give beside what is served; for one thread."""

    def __init__(self, predictor: Predictor, options: Options, tables: Path) -> None:
        """Map tables.

        Args:
            predictor: what `load` gave of the archive.
            options: those it was loaded with.
            tables: `tables.bin`, or another file that is laid out as it is.

        Raises:
            OSError: it cannot be mapped.
            WeightsError: the archive has no tables.
        """
        if predictor.tables is None:
            message = "a model without tables has no rows that change"
            raise WeightsError(message)
        with tables.open("rb") as file:
            self._mapped = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        buffer = torch.frombuffer(self._mapped, dtype=torch.uint8)
        self._store = TableStore(entries=predictor.tables.entries, buffer=buffer)
        self._predictor = replace(predictor, tables=self._store, graphs={})
        self._options = options.model_copy(update={"kernels": Kernels(off="all")})
        self._changed: dict[TableKey, list[TableRows]] = {}

    def make(self, dense: Mapping[str, torch.Tensor]) -> Predictor:
        """The archive's model with dense weights, which looks up here.

        Raises:
            LoadError: it does not take them.
        """
        with unchanged_process():
            made = load_again(self._predictor, self._options, dense)
        for lookup in find_collections(made.module).lookups:
            self._watch(lookup)
        return made

    def outputs(
        self, model: Predictor, samples: Sequence[Sample], changed: Iterable[TableRows] = ()
    ) -> tuple[Outputs, ...]:
        """What samples give.

        Args:
            model: what `make` gave.
            samples: of the archive.
            changed: rows that are others than in the file; later ones go before earlier ones.

        Raises:
            SelfTestError: the model raised.
        """
        for table in changed:
            self._changed.setdefault(table.key, []).append(table)
        try:
            return tuple(
                answer(model.module, sample, model.result_metadata, model.device)
                for sample in samples
            )
        finally:
            self._changed = {}
            self._mapped.madvise(mmap.MADV_DONTNEED)  # what was written is forgotten

    def _watch(self, lookup: Lookup) -> None:
        operator = lookup.operator
        own = operator.forward

        def forward(
            indices: torch.Tensor,
            offsets: torch.Tensor,
            per_sample_weights: torch.Tensor | None = None,
        ) -> torch.Tensor:
            self._write(lookup, indices, offsets)
            found: torch.Tensor = own(indices, offsets, per_sample_weights)
            return found

        operator.forward = forward

    def _write(self, lookup: Lookup, ids: torch.Tensor, offsets: torch.Tensor) -> None:
        """Write the changed ones of the rows that are about to be looked up.

        Args:
            lookup: where.
            ids: [N].
            offsets: [F * B + 1].
        """
        operator = lookup.operator
        of_features = operator.feature_table_map
        rows = (offsets.numel() - 1) // len(of_features)
        if not rows or not self._changed:
            return
        is_all = finds_rows(operator)
        for number, start, end in zip(of_features, *_ends(offsets, rows), strict=True):
            key = TableKey(lookup.collection, operator.embedding_specs[number][0])
            # FBGEMM may take row 0 in the place of one that there is not.
            wanted = np.unique(np.append(ids[start:end].numpy(), 0)) + lookup.first_rows[number]
            for table in self._changed.get(key, ()):
                at = slice(None) if is_all else _places(table.ids, wanted)
                self._store.rows(self._store.entries[key]).numpy()[table.ids[at]] = table.rows[at]


def _ends(offsets: torch.Tensor, rows: int) -> tuple[list[int], list[int]]:
    """Where the ids of each feature start, and where they end."""
    ends: list[int] = offsets[::rows].tolist()
    return ends[:-1], ends[1:]


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where some of the wanted ids stand in others [K], ascending."""
    at = np.searchsorted(ids, wanted)
    inside = at < len(ids)
    at = at[inside]
    found: np.ndarray = at[ids[at] == wanted[inside]]
    return found
