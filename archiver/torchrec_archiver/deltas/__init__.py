"""Delta files of an archive: made of checkpoints or beside a trainer, squashed, rolled back.

`base` (the archive) → `chain` (the deltas behind it, and the state that they lead to) →
`comparing`, `writing` → `making` from a checkpoint, `history` from deltas, `tracker` from training;
`applying` publishes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchrec_archiver.deltas.tracker import TrackedDeltas, from_tracker
else:

    def __getattr__(name: str) -> object:
        """Import torchrec's distributed part, which takes seconds, only for trainers (PEP 562)."""
        if name in {"TrackedDeltas", "from_tracker"}:
            from torchrec_archiver.deltas import tracker  # noqa: PLC0415

            return getattr(tracker, name)
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)


__all__ = ["TrackedDeltas", "from_tracker"]
