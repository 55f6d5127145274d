"""Builds TorchServe model archives from TorchRec predict factories.

The data goes: factory → package → checkpoint → tables → mar, run in order by `build`.
"""

import sys
from typing import TYPE_CHECKING

OLDEST = (3, 11)
"""What an older Python cannot import, or even read, lies behind this file."""

if sys.version_info < OLDEST:
    sys.exit(
        "ERROR: torchrec-serve runs on Python {}.{} and newer, this is {}.{}\n"
        "hint: make its environment with a newer one: python3.{} -m venv .venv".format(
            *OLDEST, *sys.version_info[:2], OLDEST[1]
        )
    )

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
