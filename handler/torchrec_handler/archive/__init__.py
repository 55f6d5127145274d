"""The archive as files: what lies where, and whether to believe it. Nothing here imports torchrec.

`format` is the contract; `read`, `samples` and `verify` read an archive by it.
"""
