"""Whether what is cut out of a batch is what its requests get alone.

Sizes tell how long a first axis is, not in which order it holds its values: those of two tasks one
behind the other are as many as two a row, and ids of several features may lie row by row. Nor do
sizes tell whether values depend on what else is in the batch.

Letters in shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from torchrec_handler.archive.format import OutputSplit, Signature
from torchrec_handler.errors import SelfTestError
from torchrec_handler.load.self_test import Tolerance, compare
from torchrec_handler.load.signature.counts import Seen

Inputs = Mapping[str, torch.Tensor]
See = Callable[[int, Inputs], Seen]
"""Calls a method with a batch of so many rows."""


def find_mixed(
    see: See,
    seen: Sequence[Seen],
    signature: Signature,
    splits: Mapping[str, Sequence[OutputSplit]],
    tolerance: Tolerance,
) -> set[str]:
    """Call a method with the two halves of batches that it took, each of them a request.

    What a method draws by chance shows nothing, nor does a batch whose halves it does not take.

    Args:
        see: calls the method.
        seen: the batches, and what was given for them.
        signature: of the inputs.
        splits: output name -> how its tensors are cut.
        tolerance: how much values may depend on the size of a batch.

    Returns:
        Names of outputs that are not as they are alone.
    """
    mixed: set[str] = set()
    for batch in seen:
        half = batch.rows // 2
        try:
            again = see(batch.rows, batch.inputs)
            halves = [
                see(stop - start, take_rows(signature, batch, start, stop))
                for start, stop in ((0, half), (half, batch.rows))
            ]
        except Exception:  # noqa: BLE001, S112  a user's model may raise anything
            continue
        for name, parts in splits.items():
            if (
                name not in mixed
                and _are_same(batch, [again], name, parts, tolerance)
                and not _are_same(batch, halves, name, parts, tolerance)
            ):
                mixed.add(name)
    return mixed


def take_rows(signature: Signature, batch: Seen, start: int, stop: int) -> Inputs:
    """The inputs of a batch's rows `start` to `stop`."""
    taken: dict[str, torch.Tensor] = {}
    for entry in signature.inputs:
        if entry.type == "dense":
            taken[entry.name] = batch.inputs[entry.name][start:stop]
        elif entry.type == "embedding":
            taken[entry.name] = batch.inputs[entry.name][:, start:stop]
        else:
            lengths = batch.inputs[f"{entry.name}.lengths"].reshape(-1, batch.rows)
            rows = torch.arange(batch.rows).expand(lengths.shape).reshape(-1)
            of_ids = rows.repeat_interleave(lengths.reshape(-1).long())
            is_taken = (of_ids >= start) & (of_ids < stop)
            taken[f"{entry.name}.lengths"] = lengths[:, start:stop].reshape(-1)
            for name in (f"{entry.name}.values", f"{entry.name}.weights"):
                if name in batch.inputs:
                    taken[name] = batch.inputs[name][is_taken]
    return taken


def _are_same(
    batch: Seen,
    pieces: Sequence[Seen],
    name: str,
    parts: Sequence[OutputSplit],
    tolerance: Tolerance,
) -> bool:
    for at, whole in enumerate(batch.outputs.get(name, ())):
        given = [piece.outputs[name][at] for piece in pieces]
        try:
            # A mask that is not cut has to be the same in every request.
            expected = [_join(given, pieces, parts[at])] if at < len(parts) else given
            for one in expected:
                compare(name, whole.reshape(one.shape), one, tolerance)
        except (SelfTestError, RuntimeError):  # values, or shapes, differ
            return False
    return True


def _join(given: Sequence[torch.Tensor], pieces: Sequence[Seen], part: OutputSplit) -> torch.Tensor:
    """Requests' tensors as one of a batch: in each feature, one request's behind another's."""
    blocks = [
        torch.split(tensor.reshape(-1, *part.shape), list(piece.sizes_of(part.counts[0])))
        for tensor, piece in zip(given, pieces, strict=True)
    ]
    return torch.cat([block for feature in zip(*blocks, strict=True) for block in feature])
