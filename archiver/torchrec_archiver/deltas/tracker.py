"""Deltas beside a trainer: rows that training touched, by TorchRec's `ModelDeltaTrackerTrec`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.model_tracker.model_delta_tracker import ModelDeltaTrackerTrec
from torchrec.distributed.model_tracker.types import DeltaTrackerConfig, TrackingMode

from torchrec_archiver.deltas.base import open_base
from torchrec_archiver.deltas.shares import Touched, agree, gathered, shards
from torchrec_archiver.deltas.touched import Maker
from torchrec_archiver.deltas.writing import UNSIGNED, Signer
from torchrec_handler.errors import BuildError, TorchRecServeError


class TrackedDeltas:
    """Publishes what training changed since it did so last; made by `from_tracker`."""

    def __init__(self, parallel: DistributedModelParallel, consumer: str, folder: Path) -> None:
        """Begin to track; see `from_tracker`."""
        self._parallel, self._consumer, self._folder = parallel, consumer, folder
        self._tracker = _tracker_of(parallel, consumer)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._stack = ExitStack()
        self._maker: Maker | None = None

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
        everything = gathered(touched, self._rank)
        if self._maker is not None:
            try:
                paths = self._maker.publish(everything, state, self._folder, created)
            except (TorchRecServeError, OSError) as error:
                failure = error
        agree(failure)
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
                self._maker = Maker(base, self._folder, state, options)
        except (TorchRecServeError, OSError) as error:
            failure = error
        agree(failure)

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
            for row, column, shard in shards(name, state[name]):
                ids = local.to("cpu", torch.int64).numpy() + row
                yield Touched(name, ids, column, shard[local].detach().cpu())


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


__all__ = ["TrackedDeltas", "from_tracker"]
