"""Serves TorchRec predict modules.

The data goes: archive (`archive`, `options`) → `load` (folder to predictor) → `serve` (bytes to
bytes) → `handler`, the class that TorchServe sees. Errors are in `errors`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
