"""What one part of the soak promises, and what it measured."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    what: str
    promise: str
    measured: str
    held: bool
