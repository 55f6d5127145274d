"""How far a model's outputs are from those in float32, while its layers change their types.

Shapes: B rows.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

import torch

from torchrec_archiver.record import Failure, Recorded, call, inputs_of, methods_of
from torchrec_archiver.samples import DrawnIds, draw_requests
from torchrec_handler.archive.format import Signature
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import BuildError
from torchrec_handler.kernels.packed import FEW_ROWS
from torchrec_handler.kernels.products import INT8_ROWS
from torchrec_handler.load.call import call_recorded
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.self_test import largest_change
from torchrec_handler.load.signature.draw import STYLES
from torchrec_handler.serve.batch import take_rows
from torchrec_handler.serve.request import ValidRequest

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

ROWS = 1000
"""Measured on: those of the requests, and drawn ones to make up for the rest."""

MIDDLE_ROWS = INT8_ROWS - 1
"""The most rows of a call that int8 is not for."""
MIDDLE_CALLS = 4
SOME_ROWS = 2 * INT8_ROWS


class Change(NamedTuple):
    """How far outputs are from those in float32."""

    largest: float
    mean: float


class Changes:
    """Calls of a model in float32, and how far the same calls are off later."""

    def __init__(
        self,
        module: torch.nn.Module,
        output: FactoryOutput,
        signature: Signature,
        recorded: Recorded,
    ) -> None:
        """Call it with rows of the recorded requests together.

        A type is for calls of some numbers of rows: so there are calls of few rows, of more, and of
        all, in which what is few is repeated.

        Args:
            module: all of its layers compute in float32.
            output: what its factory made.
            signature: what it takes.
            recorded: its calls with single requests.

        Raises:
            BuildError: no method answers any request, or none with an output that can be off.
        """
        self._module, self._metadata = module, output.result_metadata
        pool = _single(recorded.requests)
        pool += _drawn(module, output, signature, ROWS - len(pool))
        self.rows = len(pool)
        """How many different ones."""
        together = [*_together(module, output, pool)]
        self._calls = [*reversed(together), *recorded.samples.values()]
        """The largest first, which show most."""
        few = [one for one in together if one.rows in {MIDDLE_ROWS, SOME_ROWS}]
        self._few = {(one.qualname, one.rows): one for one in few}.values() or self._calls
        if not self._calls:
            message = (
                "dense.dtype: 'auto' is decided on samples, and there are none; give requests "
                "that the model takes with --samples, or name a type"
            )
            raise BuildError(message)
        if not any(map(_is_measure, self._calls)):
            message = (
                "dense.dtype: 'auto' is decided by how far outputs are off, and no output of the "
                "samples is a finite floating point number; name a type"
            )
            raise BuildError(message)

    def guess(self) -> float:
        """How far outputs are off, at the least, by few of the calls."""
        return max(largest_change(one.outputs, self._again(one)) for one in self._few)

    def measure(self, most: float = float("inf")) -> Change:
        """Call it again, until an output is off by more than `most`.

        Of ids and masks, which is no measure, nothing is said.
        """
        largest, total, count = 0.0, 0.0, 0
        for sample in self._calls:
            outputs = self._again(sample)
            largest = max(largest, largest_change(sample.outputs, outputs))
            if largest > most:
                break
            for name, parts in sample.outputs.items():
                for old, new in zip(parts, outputs[name], strict=True):
                    if old.is_floating_point():
                        total += float((old.double() - new.double()).abs().nansum())
                        count += old.numel()
        return Change(largest, total / max(count, 1))

    def _again(self, sample: Sample) -> Mapping[str, tuple[torch.Tensor, ...]]:
        return call_recorded(self._module, sample.qualname, sample.inputs, self._metadata, CPU)


def _is_measure(sample: Sample) -> bool:
    """Whether a call gives anything that can be off by so much."""
    found = (one for parts in sample.outputs.values() for one in parts)
    return any(one.is_floating_point() and bool(one.isfinite().any()) for one in found)


def _single(requests: Sequence[ValidRequest]) -> list[ValidRequest]:
    """Their rows, one by one."""
    rows = ((request, row) for request in requests for row in range(request.rows))
    return [take_rows(request, row, row + 1) for request, row in itertools.islice(rows, ROWS)]


def _drawn(
    module: torch.nn.Module, output: FactoryOutput, signature: Signature, rows: int
) -> list[ValidRequest]:
    """Rows of the first style that no method raises on; none where each does."""
    for ids, style in itertools.product(get_args(DrawnIds), STYLES) if rows > 0 else ():
        drawn = _single(draw_requests(signature, style, ids, [rows]))
        if drawn and not any(
            isinstance(call(module, output, qualname, rows, inputs_of(drawn, output)), Failure)
            for qualname in methods_of(output)
        ):
            return drawn
    return []


def _together(
    module: torch.nn.Module, output: FactoryOutput, pool: Sequence[ValidRequest]
) -> Iterator[Sample]:
    """Batches of each size that a type is for, small ones first, where a method takes them."""
    if not pool:
        return
    endless = list(itertools.islice(itertools.cycle(pool), max(len(pool), SOME_ROWS)))
    starts = range(0, min(len(pool), MIDDLE_CALLS * MIDDLE_ROWS), MIDDLE_ROWS)
    middle = [endless[start : start + MIDDLE_ROWS] for start in starts]
    for several in (endless[: FEW_ROWS - 1], *middle, endless[:SOME_ROWS], endless):
        inputs = inputs_of(several, output)
        for qualname in methods_of(output):
            outcome = call(module, output, qualname, len(several), inputs)
            if isinstance(outcome, Sample):
                yield outcome
