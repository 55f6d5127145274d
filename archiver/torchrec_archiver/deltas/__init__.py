"""Delta files of an archive: made of checkpoints or beside a trainer, squashed, rolled back.

`base` (the archive) → `chain` (the deltas behind it, and the state that they lead to) → `writing`
→ `making` from a checkpoint, `history` from deltas, `tracker` from training; `applying` publishes.
"""
