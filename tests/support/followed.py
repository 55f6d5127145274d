"""A folder of deltas and who follows it, without a model."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.support import updating
from tests.support.line import Line, drawn
from torchrec_handler.archive.delta import read_delta
from torchrec_handler.archive.format import FORMAT_VERSION, Index, Signature
from torchrec_handler.options import Updates
from torchrec_handler.tables.store import TableStore
from torchrec_handler.updates.follow import Follower, Source
from torchrec_handler.updates.live import Live
from torchrec_handler.updates.served import Model, Served, start
from torchrec_handler.updates.weights import Weights

Dense = Mapping[str, torch.Tensor]
"""Stands for a model with these weights."""

BASE = hashlib.sha256(b"archive.json").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
ENTRIES = tuple(updating.ENTRIES.values())
SOURCE = Source(
    archive=Path(),
    index=Index(
        format_version=FORMAT_VERSION,
        versions={},
        signature=Signature(inputs=(), methods={}, result_metadata="dict_of_tensor"),
        tables=ENTRIES,
        extra_files=(),
        sha256={},
        samples=0,
    ),
    base=BASE,
    dense={"over.weight": torch.zeros(2, 3)},
    deltas=Path(),
    keys=(),
)


class Server:
    """One worker's follower, beside the folder that it follows."""

    def __init__(self, folder: Path) -> None:
        self.archive, self.deltas, self.live = (folder / name for name in ("a", "d", "live"))
        for one in (self.archive, self.deltas, self.live):
            one.mkdir()
        (self.archive / "tables.bin").write_bytes(bytes(updating.SIZE))
        self.source = replace(SOURCE, archive=self.archive, deltas=self.deltas)
        self.dice = np.random.default_rng(0)
        self.line = Line(self.deltas, BASE)
        self.state = bytearray(updating.SIZE)
        """What rows have to be."""
        self.follower = self.worker()

    def worker(self, **source: object) -> Follower:
        live = Live(self.live, updating.ENTRIES, self.deltas, read_delta)
        given = replace(self.source, **source)  # type: ignore[arg-type]
        return Follower(live, given, Weights(self.live, given.dense, given.dense, dict))

    def publish(self, **others: object) -> Path:
        tables = [drawn(entry, 20, self.dice) for entry in ENTRIES[:3]]
        path = self.line.publish(tables, **others)
        self.expect(path)
        return path

    def expect(self, path: Path) -> None:
        for table in read_delta(path).tables:
            entry = updating.ENTRIES[table.key]
            for at, row in zip(table.ids, table.rows, strict=True):
                start = entry.offset + int(at) * entry.row_bytes
                self.state[start : start + entry.row_bytes] = row.tobytes()

    def serve(self) -> Served[Dense]:
        """A worker that follows the folder, with its live copy beside that."""
        store = TableStore.map(self.archive / "tables.bin", ENTRIES)
        options = Updates(folder=str(self.deltas), place=str(self.live), poll_seconds=0.001)
        return start(options, "model", self.source, store, Model(self.source.dense, dict))

    def is_right(self) -> bool:
        return (self.live / "live.bin").read_bytes() == self.state
