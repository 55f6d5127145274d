"""Samples asked of rows that are not in the file: as if they were, and nothing is written there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.kinds import CPU, KINDS, build
from torchrec_handler.archive.delta import TableRows
from torchrec_handler.archive.format import DENSE, SAMPLES, TABLES
from torchrec_handler.archive.samples import Sample, read_samples
from torchrec_handler.load.loader import load, read_dense
from torchrec_handler.load.rehearsal import Rehearsal
from torchrec_handler.load.self_test import answer
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.tables.store import TableStore

CASES = [
    ("managed-sequence", "table_wise"),
    ("position-weighted", "table_wise"),
    ("shared", "row_wise"),
    ("two-tower", "table_wise"),
]


def turned(store: TableStore) -> list[TableRows]:
    """All rows of each table, each with the next one's content."""
    return [
        TableRows(
            key=key,
            ids=np.arange(entry.rows),
            rows=np.roll(store.rows(entry).numpy(), 1, axis=0),
        )
        for key, entry in store.entries.items()
    ]


def written(tables: bytes, changed: list[TableRows], store: TableStore) -> bytes:
    state = np.frombuffer(bytearray(tables), np.uint8)
    for table in changed:
        entry = store.entries[table.key]
        block = state[entry.offset : entry.offset + entry.nbytes]
        block.reshape(entry.rows, entry.row_bytes)[table.ids] = table.rows
    return state.tobytes()


def given(predictor: Predictor, samples: list[Sample]) -> list[torch.Tensor]:
    """What a worker gives."""
    answers = [
        answer(predictor.module, sample, predictor.result_metadata, predictor.device)
        for sample in samples
    ]
    return [part for one in answers for parts in one.values() for part in parts]


@pytest.mark.parametrize(("kind", "sharding"), CASES)
def test_rows_are_looked_up_as_if_they_were_in_the_file(
    kind: str, sharding: str, tmp_path: Path
) -> None:
    archive = build(KINDS[kind], tmp_path)
    tables = (archive / TABLES).read_bytes()
    options = Options.model_validate({"sharding": {"type": sharding, "world_size": 2}})
    predictor = load(archive, options, CPU)
    assert predictor.tables is not None
    samples = read_samples(archive / SAMPLES)
    rehearsal = Rehearsal(predictor, options, archive / TABLES)
    model = rehearsal.make(read_dense(archive / DENSE))
    changed = turned(predictor.tables)
    before, after, again = (
        [part for one in found for parts in one.values() for part in parts]
        for found in (
            rehearsal.outputs(model, samples),
            rehearsal.outputs(model, samples, changed),
            rehearsal.outputs(model, samples),
        )
    )
    assert (archive / TABLES).read_bytes() == tables
    torch.testing.assert_close(before, given(predictor, samples), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, before, rtol=0, atol=0)
    assert not torch.allclose(after[0], before[0])
    (tmp_path / "state.bin").write_bytes(written(tables, changed, predictor.tables))
    predictor.tables.switch(tmp_path / "state.bin")
    torch.testing.assert_close(after, given(predictor, samples), rtol=1e-4, atol=1e-5)


def test_of_many_changed_rows_those_that_are_looked_up_are_written(tmp_path: Path) -> None:
    archive = build(KINDS["shared"], tmp_path)
    predictor = load(archive, Options(), CPU)
    assert predictor.tables is not None
    rehearsal = Rehearsal(predictor, Options(), archive / TABLES)
    model = rehearsal.make(read_dense(archive / DENSE))
    changed = turned(predictor.tables)
    sample = read_samples(archive / SAMPLES)[0]
    counts: list[int] = []
    own = model.module.forward

    def forward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = own(batch)
        held = rehearsal._store
        counts.extend(
            int((held.rows(held.entries[table.key]).numpy() == table.rows).all(axis=1).sum())
            for table in changed
        )
        return found

    model.module.forward = forward
    rehearsal.outputs(model, [sample], changed)
    ids = len(sample.inputs["id_list_features.values"])
    assert 0 < sum(counts) <= ids + len(changed)
