"""Builds TorchServe model archives from TorchRec predict factories.

The data goes: factory → package → checkpoint → tables → mar, run in order by `build`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchrec_archiver.build import build_archive
    from torchrec_archiver.package import DefaultPackager
else:

    def __getattr__(name: str) -> object:
        """Import torch, which takes seconds, only for those who build (PEP 562)."""
        if name == "build_archive":
            from torchrec_archiver.build import build_archive  # noqa: PLC0415

            return build_archive
        if name == "DefaultPackager":
            from torchrec_archiver.package import DefaultPackager  # noqa: PLC0415

            return DefaultPackager
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)


__all__ = ["DefaultPackager", "build_archive"]
