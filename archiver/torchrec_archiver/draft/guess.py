"""Guesses a forward by widths alone: what fits end to end is called, in the checkpoint's order.

What it computes runs, and is right only by luck. Shapes: B rows.
"""

import re
from collections.abc import Sequence
from keyword import iskeyword
from typing import NamedTuple

from torchrec_archiver.draft.layers import Layers, attribute

NUMBERS, IDS = "numbers", "ids"
"""Parameters of forward."""
DENSE_WORDS = ("dense", "bottom", "float", "numeric")
"""In names of the layers that numbers go through first."""


class Pooled(NamedTuple):
    """What a collection gives."""

    path: str
    width: int
    """Of all its tables together."""
    is_sequence: bool
    """Whether it gives an id's row each, which are summed up."""


class Guess(NamedTuple):
    """A forward that runs."""

    lines: Sequence[str]
    """The body of `forward(self, numbers, ids)`, of `forward(self, ids)` without numbers."""
    numbers: int
    """How many a row has."""
    left_out: Sequence[str]
    """Parts that are not called, and why."""


def guess_forward(drawn: Layers, collections: Sequence[Pooled]) -> Guess:
    """Call each layer with what has its width: a value, or all of them side by side.

    Where a layer takes more numbers than there are, the others are taken for dense features.
    """
    flow = _Flow()
    dense = next((one for path, one in drawn.called.items() if _is_dense(path)), None)
    if dense:
        flow.numbers(dense.takes)
    for one in collections:
        flow.given[flow.name(one.path or "tables")] = one.width
    flow.left = dict(flow.given)
    names = [name for name in flow.given if name != NUMBERS]
    lines = [_pooled(name, one) for name, one in zip(names, collections, strict=True)]
    left_out = [f"{path}, which takes no numbers" for path in drawn.others]
    for path, (takes, gives) in drawn.called.items():
        if (taken := flow.take(takes)) is None:
            left_out.append(f"{path}, which takes {takes} numbers where nothing else has as many")
            continue
        name = flow.name(path)
        lines.append(f"{name} = {attribute(path)}({taken})")
        flow.left = {name: gives, **flow.left}
    answers = {name: width for name, width in flow.left.items() if name != NUMBERS}
    only = len(answers) == 1
    held = ", ".join(
        f'"{"default" if only else name}": {name}{".reshape(-1)" if width == 1 else ""}'
        for name, width in answers.items()
    )
    return Guess([*lines, f"return {{{held}}}"], flow.given.get(NUMBERS, 0), left_out)


class _Flow:
    """Values by the name of their variable, and how wide they are."""

    def __init__(self) -> None:
        self.given: dict[str, int] = {}
        """To the first layers."""
        self.left: dict[str, int] = {}
        """That no layer has taken, the latest first."""
        self._names = {"self", "torch", NUMBERS, IDS}

    def name(self, path: str) -> str:
        """A variable for what a part gives."""
        name = re.sub(r"\W", "_", path)
        name = f"part_{name}" if name[0].isdigit() else name
        while name in self._names or iskeyword(name):
            name += "_"
        self._names.add(name)
        return name

    def numbers(self, width: int) -> None:
        """Have dense features, as the first of all."""
        self.given = {NUMBERS: width, **self.given}
        self.left = {NUMBERS: width, **self.left}

    def take(self, width: int) -> str | None:
        """The argument that has a width, and is taken by it; None where nothing has."""
        for values in (self.left, self.given):
            taken = [name for name, one in values.items() if one == width][:1]
            if not taken and sum(values.values()) == width:
                taken = list(values)
            if taken:
                self.left = {name: one for name, one in self.left.items() if name not in taken}
                return taken[0] if len(taken) == 1 else f"torch.cat([{', '.join(taken)}], dim=1)"
        more = width - sum(self.left.values())
        if NUMBERS in self.given or more <= 0:
            return None
        self.numbers(more)
        return self.take(width)


def _is_dense(path: str) -> bool:
    return any(word in path for word in DENSE_WORDS)


def _pooled(name: str, one: Pooled) -> str:
    called = f"{attribute(one.path) if one.path else 'self'}({IDS})"
    if not one.is_sequence:
        return f"{name} = {called}.values()"
    return f"{name} = torch.cat([v.to_padded_dense().sum(1) for v in {called}.values()], dim=1)"
