"""The archive as files: what lies where, and whether to believe it. Nothing here imports torchrec.

`format` is the contract, `samples` and `verify` read a folder by it.
"""
