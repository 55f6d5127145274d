"""A line in the log for each request that is not answered, as long as they are few."""

import logging
import threading
from collections import Counter

from torchrec_handler.errors import RequestError
from torchrec_handler.front.torchserve.answers import error_document
from torchrec_handler.serve.codecs.json_document import shortened

logger = logging.getLogger(__name__)

MOST_LINES = 10
"""Between two calls of `next`."""
MOST_CHARACTERS = 500
"""Of a message."""


class Refusals:
    """Logs the first ones of a while, and counts the others."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._lines = 0
        self._others: Counter[str] = Counter()

    def tell(self, qualname: str, request_id: str, error: RequestError) -> None:
        """Log a refusal, or count it.

        Args:
            qualname: the method that was asked for.
            request_id: TorchServe's.
            error: why it was refused.
        """
        document = error_document(error)
        kind = f"{document['code']} {document['type']}"
        with self._lock:
            self._lines += 1
            if self._lines > MOST_LINES:
                self._others[kind] += 1
                return
        logger.warning(
            "Refused: %s, request %s, %s of %s: %s",
            kind,
            _printable(request_id),
            _printable(shortened(qualname)),
            self._model,
            _printable(shortened(document["message"], MOST_CHARACTERS)),
        )

    def next(self) -> None:
        """Log how many were not logged, and begin again."""
        with self._lock:
            others, self._others = self._others, Counter()
            self._lines = 0
        if others:
            counts = ", ".join(f"{count} x {kind}" for kind, count in others.most_common())
            logger.warning("Refused: %d more, not logged: %s", others.total(), counts)


def _printable(text: str) -> str:
    """On one line, whatever a client put into it."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
