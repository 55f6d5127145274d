"""What a server has once it has taken deltas, by nothing but the format's page."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from torchrec_handler.archive.delta import read_delta
from torchrec_handler.archive.format import DENSE, INDEX, TABLES, Index
from torchrec_handler.load.loader import read_dense

Weights = dict[str, torch.Tensor]


def replayed(archive: Path, paths: Iterable[Path]) -> tuple[bytes, Weights]:
    """What a server has after some deltas: tables, and dense weights."""
    index = Index.loads((archive / INDEX).read_text())
    tables = np.fromfile(archive / TABLES, np.uint8)
    dense = read_dense(archive / DENSE)
    for path in paths:
        delta = read_delta(path)
        dense |= delta.dense
        for table in delta.tables:
            entry = next(entry for entry in index.tables if entry.key == table.key)
            block = tables[entry.offset : entry.offset + entry.nbytes]
            block.reshape(entry.rows, entry.row_bytes)[table.ids] = table.rows
    return tables.tobytes(), dense


def assert_same(one: tuple[bytes, Weights], other: tuple[bytes, Weights]) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
