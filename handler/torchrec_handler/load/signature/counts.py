"""What fits all calls of a method: whether an output's first axis counts rows, or whose ids."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from torchrec_handler.archive.format import Count, OutputSplit, Signature
from torchrec_handler.load.signature.told import ROWS, Told

Shape = tuple[int, ...]


class CannotCutError(Exception):
    """Nobody can tell whose an output's values are."""


class IsPaddedError(Exception):
    """An output's shape behind its first axis depends on what else is in the batch."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One call of a method: the sizes of what it got, and of what it gave."""

    rows: int
    sizes: Mapping[Count, int]
    """What an axis may count, with a factor of 1 -> how many the batch has of it."""
    shapes: Mapping[str, tuple[Shape, ...]]
    """Output name -> of each of its tensors."""
    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, tuple[torch.Tensor, ...]]

    def size(self, count: Count) -> int:
        """What an axis that counts this is long."""
        whole = self.sizes.get(replace(count, factor=1))
        if whole is None:
            of_features = [replace(count, factor=1, features=(at,)) for at in count.features]
            whole = sum(self.sizes[one] for one in of_features)
        return whole * count.factor

    def sizes_of(self, count: Count) -> Iterator[int]:
        """How many values such an axis holds of each feature, or of rows."""
        features = count.features or [
            one.features[0] for one in self.sizes if one.input == count.input and one.features
        ]
        if count.input is None or not features:
            yield self.size(count)
            return
        for at in features:
            yield self.size(replace(count, features=(at,)))

    def fits(self, shape: Shape, split: OutputSplit) -> bool:
        """Whether a tensor of the call is cut so."""
        lengths = [self.size(count) for count in split.counts]
        return shape[0] in lengths and shape[1:] == split.shape


def see(
    signature: Signature,
    inputs: Mapping[str, torch.Tensor],
    rows: int,
    outputs: Mapping[str, tuple[torch.Tensor, ...]],
) -> Seen:
    """Note the sizes of a call."""
    # Serving gives a tensor without an axis one.
    shapes = {
        name: tuple(tuple(part.shape) or (1,) for part in parts) for name, parts in outputs.items()
    }
    counted = sizes(signature, inputs, rows)
    return Seen(rows=rows, sizes=counted, shapes=shapes, inputs=inputs, outputs=outputs)


def sizes(signature: Signature, inputs: Mapping[str, torch.Tensor], rows: int) -> dict[Count, int]:
    """All that an axis may count in a batch: rows first, ids of each sparse input, of a feature."""
    found = {ROWS: rows}
    for entry in signature.inputs:
        if "sparse" in entry.type:
            lengths = inputs[f"{entry.name}.lengths"].reshape(-1, rows).sum(dim=1).tolist()
            found[Count(factor=1, input=entry.name)] = sum(lengths)
            if len(lengths) > 1:
                for position, size in enumerate(lengths):
                    found[Count(factor=1, input=entry.name, features=(position,))] = size
    return found


class Method:
    """What was seen of one method."""

    def __init__(
        self, qualname: str, seen: Sequence[Seen], signature: Signature, told: Told
    ) -> None:
        """Take calls with batches of different numbers of rows."""
        self._qualname = qualname
        self._seen = seen
        self._features = {entry.name: entry.features for entry in signature.inputs}
        self._is_masked = signature.result_metadata == "dict_with_mask_tensor"
        self._told = told
        self.outputs = tuple(dict.fromkeys(name for one in seen for name in one.shapes))

    def split(self, name: str) -> tuple[OutputSplit, ...]:
        """How the tensors of an output are cut.

        Raises:
            CannotCutError: nothing fits, or things that would cut it at different places.
            IsPaddedError: requests would see in their answers what they share a batch with.
        """
        seen = [one for one in self._seen if name in one.shapes]
        numbers = {len(one.shapes[name]) for one in seen}
        if self._is_masked and len({one.shapes[name][1] for one in seen}) == 1:
            numbers = {1}  # the mask goes to every request whole
        if len(numbers) > 1:
            counted = " and ".join(map(str, sorted(numbers)))
            message = f"{self._where(name)}: has {counted} tensors, as many each time are expected"
            raise CannotCutError(message)
        return tuple(
            OutputSplit(
                counts=self._counts(name, seen, [one.shapes[name][part] for one in seen]),
                shape=self._behind(name, [one.shapes[name][part] for one in seen]),
            )
            for part in range(numbers.pop())
        )

    def _counts(
        self, name: str, seen: Sequence[Seen], shapes: Sequence[Shape]
    ) -> tuple[Count, ...]:
        where = self._where(name)
        received = ", ".join(
            f"{list(shape)} for {one.rows} rows"
            for one, shape in zip(seen[:3], shapes, strict=False)
        )
        if (told := self._told.counts.get(name)) is not None:
            counts = _fitting([told], seen, shapes)
            if counts:
                self._told.right.add(name)
                return counts
            self._told.wrong[name] = (
                f"{where}: received {received}, where the first axis does not count "
                f"{self._shown(told)}"
            )
        counts = _fitting(list(seen[0].sizes), seen, shapes)
        if not counts:
            message = (
                f"{where}: received {received}: its first axis counts neither rows, nor the ids of "
                "a sparse input or of a feature, so nobody can tell requests that share a batch "
                f"apart; leave it out, or give k values a row or an id{_how_to_say(name)}"
            )
            raise CannotCutError(message)
        blurred = [one for one in counts if not self._is_in_one_piece(one, seen[0])]
        if len(counts) > 1 and (blurred or counts[0].input is not None):
            message = (
                f"{where}: received {received}: its first axis may count "
                f"{' or '.join(map(self._shown, counts))}{_how_to_say(name)}"
            )
            raise CannotCutError(message)
        return counts

    def _behind(self, name: str, shapes: Sequence[Shape]) -> Shape:
        first, *others = dict.fromkeys(shape[1:] for shape in shapes)
        if others:
            other = next(shape for shape in shapes if shape[1:] != first)
            message = (
                f"{self._where(name)}: received {list(shapes[0])} and {list(other)}: behind the "
                "first axis its shape depends on what else is in the batch; pad it to a fixed size "
                "to have requests batched"
            )
            raise IsPaddedError(message)
        return first

    def say_mixed(self, name: str, parts: Sequence[OutputSplit]) -> str:
        """What to do about an output whose values a batch holds otherwise than its sizes say."""
        counted = " and ".join(self._shown(part.counts[0]) for part in parts)
        return (
            f"{self._where(name)}: counts {counted}, but what requests of a batch get so is not "
            "what they get alone: it holds the values in another order, or they depend on what "
            "else is in the batch; give those of each row, or of each id in the order of the "
            "input's values, one behind another to have requests batched"
        )

    def _where(self, name: str) -> str:
        return f"{self._qualname}: output {name!r}"

    def _shown(self, count: Count) -> str:
        if count.input is None:
            return "rows"
        if not count.features:
            return f"all ids of {count.input}"
        names = self._features[count.input]
        features = [repr(names[at]) if names else str(at) for at in count.features]
        return f"the ids of {', '.join(features)} of {count.input}"

    @staticmethod
    def _is_in_one_piece(count: Count, seen: Seen) -> bool:
        """Whether a request's values lie one behind another."""
        if count.input is None or len(count.features) == 1:
            return True
        several = replace(count, factor=1, features=(1,))
        return not count.features and several not in seen.sizes


def _fitting(
    counts: Sequence[Count], seen: Sequence[Seen], shapes: Sequence[Shape]
) -> tuple[Count, ...]:
    """Those that a first axis is the same multiple of in all calls, with that factor."""
    lengths = np.array([shape[0] for shape in shapes])
    fitting = []
    for count in counts:
        found = np.array([one.size(count) for one in seen])
        factor, rest = divmod(int(lengths.sum()), max(int(found.sum()), 1))
        if factor and not rest and bool((lengths == factor * found).all()):
            fitting.append(replace(count, factor=factor))
    return tuple(fitting)


def _how_to_say(name: str) -> str:
    return (
        "; to say what it counts, let PredictFactory.model_inputs_data()[INPUT]['outputs'] hold "
        f"{{{name!r}: FEATURE}}, or be [{name!r}] for all ids of the input"
    )
