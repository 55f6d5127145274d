"""What requests that arrive together may hold together: nobody waits long for somebody else's."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchrec_handler.archive.format import Signature
from torchrec_handler.errors import Overloaded
from torchrec_handler.options import Limits
from torchrec_handler.serve.measure import SPARSE, Size


class Budget:
    """Shares out what one batch may hold, the smallest requests first."""

    def __init__(self, limits: Limits) -> None:
        self._most = Size(limits.rows_per_batch, limits.ids_per_batch)

    def refusals(self, sizes: Sequence[Size]) -> dict[int, Overloaded]:
        """Which requests are too much beside smaller ones; the smallest never is.

        Args:
            sizes: of each request.

        Returns:
            Position -> what to answer.
        """
        most = self._most
        rows, ids = sum(size.rows for size in sizes), sum(size.ids for size in sizes)
        if rows <= most.rows and ids <= most.ids:
            return {}
        shares = [max(size.rows / most.rows, size.ids / most.ids) for size in sizes]
        smallest, *others = sorted(range(len(sizes)), key=shares.__getitem__)
        rows, ids, _ = sizes[smallest]
        refused = {}
        for position in others:
            size = sizes[position]
            if rows + size.rows > most.rows:
                refused[position] = _refusal("rows", size.rows, rows, most.rows)
            elif ids + size.ids > most.ids:
                refused[position] = _refusal("ids", size.ids, ids, most.ids)
            else:
                rows, ids = rows + size.rows, ids + size.ids
        return refused


def size_of_arguments(arguments: Mapping[str, Any], signature: Signature) -> Size:
    """What keyword arguments hold, as far as their names and lengths tell: the longest is its rows.

    Args:
        arguments: tensors, or anything that JSON holds.
        signature: for arguments that are called like a sparse or an embedding input's tensors.
    """
    rows, ids = 1, 0
    names = dict.fromkeys(arguments)
    for entry in signature.inputs:
        if entry.type in SPARSE:
            lengths, values, weights = (
                _length(arguments[name]) if names.pop(name, ...) is None else 0
                for name in (f"{entry.name}.{part}" for part in ("lengths", "values", "weights"))
            )
            ids += max(values, weights)
            if entry.num_features:
                rows = max(rows, lengths // entry.num_features)
        elif entry.type == "embedding" and names.pop(entry.name, ...) is None:
            blocks = arguments[entry.name]
            rows = max(rows, _length(blocks[0]) if _length(blocks) else 0)
    return Size(max([rows, *(_length(arguments[name]) for name in names)]), ids)


def _length(value: Any) -> int:
    is_array = hasattr(value, "shape") or isinstance(value, list)
    return len(value) if is_array else 0


def _refusal(what: str, received: int, taken: int, most: int) -> Overloaded:
    return Overloaded(
        received=f"{received} {what} beside {taken} of other requests",
        expected=f"at most {most} together (limits.{what}_per_batch)",
        hint="try again",
    )
