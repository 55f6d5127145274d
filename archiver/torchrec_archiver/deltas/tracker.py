"""Deltas beside a trainer: rows that training touched, by TorchRec's `ModelDeltaTrackerTrec`."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.model_tracker.model_delta_tracker import ModelDeltaTrackerTrec
from torchrec.distributed.model_tracker.types import DeltaTrackerConfig, TrackingMode

from torchrec_archiver.answer import options_of
from torchrec_archiver.checkpoint.entries import Checkpoint, Entry
from torchrec_archiver.deltas.base import Base, open_base
from torchrec_archiver.deltas.chain import Merged, read_chain, state_of
from torchrec_archiver.deltas.comparing import differing, encode
from torchrec_archiver.deltas.making import changed_dense
from torchrec_archiver.deltas.writing import UNSIGNED, Signer, publish, split
from torchrec_archiver.fit import fit
from torchrec_handler.archive.delta import TableRows, read_delta, remaps_of
from torchrec_handler.archive.format import TABLES, TableKey
from torchrec_handler.errors import BuildError, TorchRecServeError
from torchrec_handler.load.package import open_package
from torchrec_handler.load.steps import make

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class Touched(NamedTuple):
    """Rows of a shard, or of a part of their columns."""

    name: str
    """The table's, as the model's `state_dict` has it."""
    ids: np.ndarray
    """[N] int64: rows of the whole table."""
    column: int
    """The first of them."""
    rows: torch.Tensor
    """[N, width of the shard] floating point, on the CPU."""


class TrackedDeltas:
    """Publishes what training changed since it did so last; made by `from_tracker`."""

    def __init__(self, parallel: DistributedModelParallel, consumer: str, folder: Path) -> None:
        """Begin to track; see `from_tracker`."""
        self._parallel, self._consumer, self._folder = parallel, consumer, folder
        self._tracker = _tracker_of(parallel, consumer)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._stack = ExitStack()
        self._maker: _Maker | None = None

    def publish(self, created: float | None = None) -> list[Path]:
        """Publish what has changed. All ranks call it, between two steps of training.

        Ids that were touched are known until a delta of them is on the disk: where this raises,
        on all ranks alike, the next call has them too.

        Args:
            created: when training was there; now, if not given.

        Returns:
            The deltas; none where nothing differs once it is encoded, and on ranks other than 0.

        Raises:
            TorchRecServeError: rows cannot be served, or a delta cannot be written.
        """
        tracker, end = self._tracker, self._tracker.curr_batch_idx + 1
        state = self._parallel.state_dict()
        touched = list(self._touched(state, end))
        failure: Exception | None = None
        paths: list[Path] = []
        everything = _gathered(touched, self._rank)
        if self._maker is not None:
            try:
                paths = self._maker.publish(everything, state, self._folder, created)
            except (TorchRecServeError, OSError) as error:
                failure = error
        _agree(failure)
        tracker.per_consumer_batch_idx[self._consumer] = end
        if tracker._delete_on_read:  # noqa: SLF001  nothing else says so
            tracker.store.delete(up_to_idx=min(tracker.per_consumer_batch_idx.values()))
        return paths

    def close(self) -> None:
        """Let the archive go, where it was unpacked."""
        self._stack.close()

    def _begin(self, archive: Path, options: Mapping[str, Any]) -> None:
        """Open the archive, on the rank that writes."""
        failure: Exception | None = None
        try:
            if self._rank == 0:
                base = self._stack.enter_context(open_base(archive, options["keys"]))
                state = self._parallel.state_dict()
                self._maker = _Maker(base, self._folder, state, options)
        except (TorchRecServeError, OSError) as error:
            failure = error
        _agree(failure)

    def _touched(self, state: Mapping[str, Any], end: int) -> Iterator[Touched]:
        """What this rank's lookups were, and the rows that are there now."""
        first = self._tracker.per_consumer_batch_idx[self._consumer]
        # Not the tracker's own get_unique, which raises where one table had no ids, and forgets
        # ids before anything is made of them.
        lookups = self._tracker.store.get_indexed_lookups(first, end)
        for fqn, several in lookups.items():
            if not several:
                continue
            local: torch.Tensor = torch.unique(torch.cat([lookup.ids for lookup in several]))
            name = f"{fqn}.weight"
            for row, column, shard in _shards(name, state[name]):
                ids = local.to("cpu", torch.int64).numpy() + row
                yield Touched(name, ids, column, shard[local].detach().cpu())


class _Maker:
    """Makes deltas, on rank 0."""

    def __init__(
        self, base: Base, folder: Path, state: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
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
            ids, rows = _joined(name, parts, entry.width)
            kept = ids < entry.rows  # of a pruned table the first ones
            ids, rows = ids[kept], rows[torch.from_numpy(kept)]
            if not len(ids):
                continue
            encoded = encode(entry, rows, ids)
            at = differing(encoded, self._state.rows(entry, ids))
            if len(at):
                yield TableRows(key=key, ids=ids[at], rows=encoded[at])


def from_tracker(  # noqa: PLR0913
    parallel: DistributedModelParallel,
    consumer: str,
    *,
    archive: str | Path,
    folder: str | Path,
    max_rows: int | None = None,
    keys: Sequence[Path] = (),
    signer: Signer = UNSIGNED,
    weights_map: Mapping[str, str] | None = None,
    weights_key: str | None = None,
    ignore_weights: Sequence[str] = (),
) -> TrackedDeltas:
    """Track what training touches, to publish it as deltas; all ranks call it.

    Training goes on from the weights that the newest delta in the folder left, or the archive was
    built of. Rows that change without a lookup, by weight decay or momentum alone, are not seen:
    `torchrec-archiver delta` of a checkpoint now and then brings them.

    Args:
        parallel: what is trained.
        consumer: of the tracker: one that nobody else reads. A tracker that is there already has to
            have it; else one is made.
        archive: what the deltas change, on rank 0: a .mar, a .tar.gz or a folder. Its factory is
            run there, once, to tell which weight is which.
        folder: where deltas are published, on rank 0.
        max_rows: of a delta; what has more becomes several generations. None: one of any size.
        keys: public keys, of which one has to have signed archive and deltas.
        signer: who signs the deltas.
        weights_map: see `build_archive`, as for the next two.
        weights_key: as there.
        ignore_weights: as there.

    Raises:
        BuildError: the model is not the archive's, or cannot be tracked.
        TorchRecServeError: the archive or a delta in the folder is not what it says it is.
    """
    tracked = TrackedDeltas(parallel, consumer, Path(folder))
    options = {
        "max_rows": max_rows,
        "keys": keys,
        "signer": signer,
        "weights_map": weights_map or {},
        "weights_key": weights_key,
        "ignore_weights": ignore_weights,
    }
    tracked._begin(Path(archive), options)  # noqa: SLF001  of this file
    return tracked


def _tracker_of(parallel: DistributedModelParallel, consumer: str) -> ModelDeltaTrackerTrec:
    config = DeltaTrackerConfig(tracking_mode=TrackingMode.ID_ONLY, consumers=[consumer])
    tracker = parallel.get_delta_tracker() or parallel.init_torchrec_delta_tracker(config)
    if consumer not in tracker.per_consumer_batch_idx:
        message = (
            f"tracker: has the consumers {', '.join(tracker.per_consumer_batch_idx)}, expected "
            f"{consumer} among them; name it in the DeltaTrackerConfig"
        )
        raise BuildError(message)
    if tracker._mode is not TrackingMode.ID_ONLY:  # noqa: SLF001  nothing else says so
        message = f"tracker: tracks {tracker._mode.value}, expected id_only"  # noqa: SLF001
        raise BuildError(message)
    # It keeps features and tables by their names alone.
    configs = [
        config
        for module in tracker.get_tracked_modules().values()
        for config in module._table_name_to_config.values()  # noqa: SLF001
    ]
    for what, names in (
        ("tables", [config.name for config in configs]),
        ("features", [name for config in configs for name in config.feature_names]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            message = (
                f"tracker: the model has two {what} {twice[0]!r}, which TorchRec's tracker takes "
                "for one; make deltas of checkpoints, with torchrec-archiver delta"
            )
            raise BuildError(message)
    return tracker


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


def _shards(name: str, value: Any) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First row, first column and rows of what this rank has of a table."""
    if not isinstance(value, ShardedTensor):
        yield 0, 0, value.detach()
        return
    shards = value.local_shards()
    if len({shard.metadata.shard_offsets[0] for shard in shards}) > 1:
        message = f"{name}: has shards of different rows on one rank, whose ids are the same"
        raise BuildError(message)
    for shard in shards:
        row, column = shard.metadata.shard_offsets
        yield row, column, shard.tensor


def _joined(name: str, parts: Sequence[Touched], width: int) -> tuple[np.ndarray, torch.Tensor]:
    """Whole rows [N, D] of what ranks sent, by their ids [N], ascending."""
    ids = np.unique(np.concatenate([part.ids for part in parts]))
    rows = torch.empty(len(ids), width, dtype=parts[0].rows.dtype)
    held = np.zeros((len(ids), width), bool)
    for part in parts:
        at = np.searchsorted(ids, part.ids)
        columns = slice(part.column, part.column + part.rows.shape[1])
        rows[torch.from_numpy(at), columns] = part.rows
        held[at, columns] = True
    if not held.all():
        row = ids[int((~held.all(axis=1)).argmax())]
        message = f"{name}: row {row} was touched on some of the ranks that hold its columns alone"
        raise BuildError(message)
    return ids, rows


def _gathered(touched: list[Touched], rank: int) -> list[Touched]:
    """What all ranks touched, on rank 0."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return touched
    several: list[list[Touched]] | None = [[]] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(touched, several)
    return [part for parts in several or () for part in parts]


def _agree(failure: Exception | None) -> None:
    """Raise on all ranks what rank 0 met."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if failure is not None:
            raise failure
        return
    said = [None if failure is None else str(failure)]
    dist.broadcast_object_list(said)
    if failure is not None:
        raise failure
    if said[0] is not None:
        message = f"rank 0: {said[0]}"
        raise BuildError(message)


__all__ = ["TrackedDeltas", "from_tracker"]
