"""The edge: columns of many requests in; of each a request that the model can take, or an error.

Every rule runs once over what requests hold, one behind another; nothing loops over rows. What
breaks a rule is told in the words of its own request.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torchrec_handler.archive.format import Signature
from torchrec_handler.errors import RequestError
from torchrec_handler.options import Options
from torchrec_handler.serve.measure import SPARSE, Form, Measure, Size
from torchrec_handler.serve.out_of_range import OutOfRange
from torchrec_handler.serve.request import Columns, ValidRequest
from torchrec_handler.serve.rules import FloatRules, RefusedError, SparseRules

SHORT = 4_096
"""Rows and ids of requests that are put together: to copy more takes longer than it saves."""


class Validator:
    """Checks requests of one model."""

    def __init__(self, signature: Signature, options: Options) -> None:
        self.measure = Measure(signature, options.limits)
        """Tells how large a request is, for `check`, and refuses wrong shapes."""
        self.out_of_range = OutOfRange(signature.inputs)
        self._names = tuple(entry.name for entry in signature.inputs)
        self._rules: list[Callable[[Sequence[Columns], int], Sequence[Any]]] = [
            SparseRules(entry, options, self.out_of_range)
            if entry.type in SPARSE
            else FloatRules(entry)
            for entry in signature.inputs
        ]

    def __call__(self, columns: Columns) -> ValidRequest:
        """Check one request.

        Raises:
            InvalidRequest: names the input, where in it, what was received and what is expected.
            RequestTooLarge: more rows or ids than the limits.
        """
        (checked,) = self.check([columns], [self.measure(columns)])
        if isinstance(checked, RequestError):
            raise checked
        return checked

    def check_rows(self, columns: Columns, size: Size) -> ValidRequest:
        """Check requests of a row each that are put together as one.

        Raises:
            RequestError: one of them breaks a rule, and each is to be checked by itself. Until then
                none of their ids is counted as out of range.
        """
        try:
            (valid,) = self._check([columns], size.rows, is_last=False)
        except RefusedError as refused:
            raise refused.errors[0] from None
        return valid._replace(requests=size.rows)

    def check(
        self, requests: Sequence[Columns], sizes: Sequence[Size]
    ) -> list[ValidRequest | RequestError]:
        """Check requests, those of equal shapes together. What becomes of one is its own affair.

        Args:
            requests: that `measure` lets pass.
            sizes: what it says of each.
        """
        outcomes: dict[int, ValidRequest | RequestError] = {}
        for group in _groups(sizes):
            waiting = group
            while waiting:
                try:
                    valid = self._check([requests[at] for at in waiting], sizes[waiting[0]].rows)
                except RefusedError as refused:
                    outcomes.update((waiting[at], error) for at, error in refused.errors.items())
                    waiting = [at for at in waiting if at not in outcomes]
                else:
                    outcomes.update(zip(waiting, valid, strict=True))
                    break
        return [outcomes[at] for at in range(len(requests))]

    def _check(
        self, requests: Sequence[Columns], rows: int, *, is_last: bool = True
    ) -> list[ValidRequest]:
        self.out_of_range.begin(is_last=is_last)
        parts = [rules(requests, rows) for rules in self._rules]
        self.out_of_range.keep()
        return [
            ValidRequest(rows, dict(zip(self._names, inputs, strict=True)))
            for inputs in zip(*parts, strict=True)
        ]


def _groups(sizes: Sequence[Size]) -> Iterable[list[int]]:
    """Positions of requests to be checked together: short ones of equal shapes."""
    groups: dict[Form | int | None, list[int]] = {}
    for at, (rows, ids, form) in enumerate(sizes):
        groups.setdefault(form if rows + ids <= SHORT else at, []).append(at)
    return groups.values()
