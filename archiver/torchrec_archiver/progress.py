"""Progress of what takes long, for people who wait."""

from typing import Any

from tqdm import tqdm

AFTER_SECONDS = 2.0
"""What is done sooner needs no bar."""


def bar(what: str, total: int, unit: str, *, shown: bool) -> "tqdm[Any]":
    """A bar on standard error, to be closed, which shows itself after `AFTER_SECONDS`.

    Args:
        what: in front of it.
        total: how much there is to do.
        unit: of which; large numbers of bytes, "B", are shortened.
        shown: whether to show it at all.
    """
    return tqdm(
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        desc=what,
        delay=AFTER_SECONDS,
        disable=not shown,
    )
