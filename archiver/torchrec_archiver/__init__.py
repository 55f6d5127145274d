"""Builds TorchServe model archives from TorchRec predict factories.

The data goes: factory → package → checkpoint → tables → mar, run in order by `build`.
"""

from torchrec_archiver.build import build_archive
from torchrec_archiver.package import DefaultPackager

__all__ = ["DefaultPackager", "build_archive"]
