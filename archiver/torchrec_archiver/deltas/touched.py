"""Deltas of rows that training touched: encoded, held against what is published, published."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from torchrec_archiver.answer import options_of
from torchrec_archiver.checkpoint.entries import Checkpoint, Entry
from torchrec_archiver.deltas.base import Base
from torchrec_archiver.deltas.chain import Merged, read_chain, state_of
from torchrec_archiver.deltas.comparing import differing, encode
from torchrec_archiver.deltas.making import changed_dense
from torchrec_archiver.deltas.shares import Touched, joined
from torchrec_archiver.deltas.writing import Signer, publish, split
from torchrec_archiver.fit import fit
from torchrec_handler.archive.delta import TableRows, read_delta, remaps_of
from torchrec_handler.archive.format import TABLES, TableKey
from torchrec_handler.errors import BuildError
from torchrec_handler.load.package import open_package
from torchrec_handler.load.steps import make

CPU = torch.device("cpu")


class Maker:
    """Makes deltas, on rank 0."""

    def __init__(
        self, base: Base, folder: Path, state: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Take what is published as it is.

        Args:
            base: of the deltas.
            folder: of them.
            state: the trained model's `state_dict`.
            options: `from_tracker`'s.

        Raises:
            TorchRecServeError: as `from_tracker`.
        """
        self._signer: Signer = options["signer"]
        self._max_rows: int | None = options["max_rows"]
        if managed := [key for key in base.entries if remaps_of(key, base.dense)]:
            message = (
                f"table {managed[0].table!r}: is behind managed collision, which TorchRec's "
                "tracker does not know; make its deltas of checkpoints, with torchrec-archiver "
                "delta"
            )
            raise BuildError(message)
        self._tables, self._dense = _named(base, state, options)
        before = state_of(base, read_chain(folder, base, keys=options["keys"]))
        # Written to in memory of this process alone, as far as rows change.
        own = replace(
            base,
            dense=before.dense,
            tables=np.memmap(base.folder / TABLES, np.uint8, "c"),
        )
        for key, table in before.merged.tables.items():
            own.rows(own.entries[key])[table.ids] = table.rows
        self._state = replace(before, base=own, merged=Merged(tables={}, dense={}))

    def publish(
        self,
        touched: Sequence[Touched],
        state: Mapping[str, Any],
        folder: Path,
        created: float | None,
    ) -> list[Path]:
        """Publish what differs of what was touched, and of the dense weights.

        Args:
            touched: by all ranks.
            state: the trained model's `state_dict`.
            folder: of the deltas.
            created: when training was there; None for now.

        Raises:
            TorchRecServeError: rows cannot be served, or a delta cannot be written.
        """
        dense = changed_dense(
            {name: state[there] for name, there in self._dense.items()}, self._state
        )
        pieces = split(self._changed(touched), dense, self._state, self._max_rows)
        paths = publish(folder, self._state, pieces, created=created, signer=self._signer)
        base = self._state.base
        for path in paths:
            delta = read_delta(path)
            for table in delta.tables:
                base.rows(base.entries[table.key])[table.ids] = table.rows
            head = delta.head
            self._state = replace(
                self._state, sequence=head.sequence, digest=head.digest, run=head.run
            )
        self._state = replace(
            self._state, base=replace(base, dense={**base.dense, **dense}) if paths else base
        )
        return paths

    def _changed(self, touched: Sequence[Touched]) -> Iterator[TableRows]:
        for name in dict.fromkeys(part.name for part in touched):
            key = self._tables[name]
            entry = self._state.base.entries[key]
            parts = [part for part in touched if part.name == name]
            ids, rows = joined(name, parts, entry.width)
            kept = ids < entry.rows  # of a pruned table the first ones
            ids, rows = ids[kept], rows[torch.from_numpy(kept)]
            if not len(ids):
                continue
            encoded = encode(entry, rows, ids)
            at = differing(encoded, self._state.rows(entry, ids))
            if len(at):
                yield TableRows(key=key, ids=ids[at], rows=encoded[at])


def _named(
    base: Base, state: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, TableKey], dict[str, str]]:
    """Which entry of a model's state is which table, and which weight: by the archive's module."""
    stand_ins = {name: _stand_in(value) for name, value in state.items() if _has_shape(value)}
    checkpoint = Checkpoint(
        entries={
            name: Entry(shape=tuple(value.shape), read=lambda value=value: value)  # type: ignore[misc]
            for name, value in stand_ins.items()
        }
    )
    if options["weights_key"] is not None:
        checkpoint = checkpoint.under(options["weights_key"])
    checkpoint = checkpoint.without(options["ignore_weights"]).renamed(options["weights_map"])
    made = make(open_package(base.package), options_of(base.folder), CPU)
    fitted = fit(checkpoint, made.output.module, made.collections)
    names = {id(value): name for name, value in stand_ins.items()}
    tables = {names[id(value)]: key for key, value in fitted.rows.items()}
    if odd := sorted(key.table for key in {*tables.values()} ^ base.entries.keys()):
        message = f"table {odd[0]!r}: is not one of both the archive's tables and the model's"
        raise BuildError(message)
    # A buffer that training does not keep stays as the archive has it.
    dense = {name: names[id(value)] for name, value in fitted.dense.items() if id(value) in names}
    return tables, dense


def _has_shape(value: Any) -> bool:
    return isinstance(value, torch.Tensor | ShardedTensor)


def _stand_in(value: Any) -> torch.Tensor:
    """A weight, or of a sharded table something of its shape, without memory."""
    if isinstance(value, ShardedTensor):
        return torch.zeros(1).expand(tuple(value.metadata().size))
    stand_in: torch.Tensor = value.detach()
    return stand_in
