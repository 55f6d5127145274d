"""What an archive was built with, beside what serves it."""

import importlib.metadata
import logging
from collections.abc import Iterator, Mapping

from torchrec_handler.archive.format import INDEX

logger = logging.getLogger(__name__)

OF_ROWS = {"torch": "torch", "torchrec": "torchrec", "fbgemm-gpu": "FBGEMM"}
OF_ROWS |= {"fbgemm-gpu-cpu": "FBGEMM"}
"""Distribution -> name, of those that make rows and outputs; FBGEMM is one, whatever its build."""

DISTRIBUTIONS = ("torchrec-serve", *OF_ROWS)


def installed() -> dict[str, str]:
    """Distribution -> version, of those of `DISTRIBUTIONS` that are there."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def warn_of_versions(built_with: Mapping[str, str]) -> None:
    """Say once what is served with other versions than it was built with.

    It is served: code of torch and TorchRec that its factory calls may have changed, and the last
    digits of an output with it, which the replay of its samples shows; rows have not.

    Args:
        built_with: distribution -> version, as `archive.json` has it.
    """
    then, now = dict(_releases(built_with)), dict(_releases(installed()))
    others = [name for name in then if now.get(name, then[name]) != then[name]]
    if others:
        logger.warning(
            "%s: built with %s, served with %s; it is served, but build it again with the versions "
            "that serve it",
            INDEX,
            ", ".join(f"{name} {then[name]}" for name in others),
            ", ".join(f"{name} {now[name]}" for name in others),
        )


def _releases(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name -> version, without the build that stands behind a `+`."""
    for distribution, version in versions.items():
        if distribution in OF_ROWS:
            yield OF_ROWS[distribution], version.partition("+")[0]
