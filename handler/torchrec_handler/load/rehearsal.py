"""The archive's samples asked of rows and dense weights that nothing is served of, and be it yet.

The tables are mapped privately, so that what is written to them stays in this process. Changed rows
are written there just before they are looked up, those that are looked up alone: of a delta of any
size that is some pages.
Shapes: B rows, F features, K changed rows, N ids.
"""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from torchrec_handler.archive.delta_parts import TableRows
from torchrec_handler.archive.format import TableKey
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import WeightsError
from torchrec_handler.kernels.direct import finds_rows, watch_lookups
from torchrec_handler.load.loader import load_again
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.self_test import Outputs, answer
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.tables.collection import Lookup
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.store import TableStore

MAP_NORESERVE = 0x4000
"""Of Linux's mman.h: most of what is mapped is never written to."""

MOST_PAGES = 10_000
"""That are forgotten one by one."""


class Rehearsal:
    """What an archive's samples give beside what is served; for one thread."""

    def __init__(self, predictor: Predictor, options: Options, tables: Path) -> None:
        """Map tables.

        Args:
            predictor: what `load` gave of the archive.
            options: those it was loaded with, or others of its kernels.
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
        self._predictor, self._options = replace(predictor, tables=self._store), options
        self._changed: dict[TableKey, list[TableRows]] = {}
        self._written: list[np.ndarray] = []
        """Numbers of pages."""

    def make(self, dense: Mapping[str, torch.Tensor]) -> Predictor:
        """The archive's model with dense weights, which looks up here.

        Raises:
            LoadError: it does not take them.
        """
        with unchanged_process():
            return load_again(self._predictor, self._options, dense, self._watch)

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
            self._forget()

    def _forget(self) -> None:
        """Let what was written be what the file has again; other pages stay, to be found soon."""
        pages = np.unique(np.concatenate([np.empty(0, np.int64), *self._written]))
        self._written = []
        for page in pages.tolist() if len(pages) < MOST_PAGES else ():
            self._mapped.madvise(mmap.MADV_DONTNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)
        if len(pages) >= MOST_PAGES:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _watch(self, module: torch.nn.Module) -> None:
        for lookup in find_collections(module).lookups:
            watch_lookups(lookup.operator, partial(self._write, lookup))

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
                entry, written = self._store.entries[key], table.ids[at]
                self._store.rows(entry).numpy()[written] = table.rows[at]
                self._note(entry.offset + written * entry.row_bytes, entry.row_bytes)

    def _note(self, first: np.ndarray, size: int) -> None:
        """Keep in mind the pages of rows, given where these begin [K]."""
        for step in range(0, size + mmap.PAGESIZE - 1, mmap.PAGESIZE):
            self._written.append((first + min(step, size - 1)) // mmap.PAGESIZE)


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
