"""A handler that does nothing: what TorchServe itself can take and give."""

from collections.abc import Sequence
from typing import Any


class NothingHandler:
    """Answers every request with an empty object."""

    def initialize(self, context: Any) -> None:
        """Load nothing."""

    def handle(self, data: Sequence[Any], context: Any) -> list[bytes]:
        """Answer a batch."""
        del context
        return [b"{}"] * len(data)
