"""Serves TorchRec predict modules.

Rooms from the ground up: `errors`, `options`, `message`, `ranks`; `simple` (a user's factory),
`archive` (files), `tables` (embedding collections), `kernels` (faster forwards), `load` (folder to
predictor), `updates` (rows that change while they are served), `serve` (bytes to bytes), `front` (a
server around it). `handler` is the door that TorchServe opens.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
