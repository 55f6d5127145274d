"""Sixth step of building: call the model on the samples, and see whether it answers."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch

from torchrec_archiver.samples import BATCHES, DrawnIds, draw_requests
from torchrec_handler.archive.format import Signature
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import BuildError
from torchrec_handler.load.call import call_recorded, said
from torchrec_handler.load.factory import FORWARD, FactoryOutput
from torchrec_handler.load.self_test import largest_change
from torchrec_handler.load.signature.draw import STYLES, draw_inputs, open_inputs
from torchrec_handler.serve.batch import combine, take_rows
from torchrec_handler.serve.request import ValidRequest

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

MOST_CALLS = 64
"""Requests that are recorded, the smallest ones."""

TOGETHER = (2, 3, 5, 8)
"""Requests that are put into one batch to see what they give there."""

MOST_FEATURES = 64
"""Of a hidden input, tried beside the widths of the model's weights."""
SECONDS_OF_TRYING = 20.0

ALL_THE_SAME = "or build all the same with --allow-failing-samples"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A call that raised."""

    qualname: str
    rows: int
    """B"""
    said: str


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Calls of a model."""

    requests: Sequence[ValidRequest] = ()
    samples: Mapping[tuple[str, int], Sample]
    """(qualname, number of the request) -> a call that gave a result, in order."""
    failures: Sequence[Failure] = ()


def record(
    module: torch.nn.Module, output: FactoryOutput, requests: Sequence[ValidRequest]
) -> Recorded:
    """Call every method that takes the batched input with each of the requests, small ones first.

    So that replaying them warms a worker up; of one that is larger than the largest batch, the
    first rows.
    """
    samples: dict[tuple[str, int], Sample] = {}
    failures = []
    for number, request in enumerate(_growing(requests)):
        inputs = inputs_of([request], output)
        for qualname in methods_of(output):
            outcome = call(module, output, qualname, request.rows, inputs)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                samples[qualname, number] = outcome
    return Recorded(requests=requests, samples=samples, failures=failures)


def record_drawn(module: torch.nn.Module, output: FactoryOutput, signature: Signature) -> Recorded:
    """Draw requests of the first style that no method raises on, else of the one with fewest.

    Ids may come to tables that nobody knows, or that another method does not look up: where any
    will not do, few are tried.
    """
    best: Recorded | None = None
    for ids, style in itertools.product(get_args(DrawnIds), STYLES):
        recorded = record(module, output, draw_requests(signature, style, ids))
        if best is None or len(recorded.failures) < len(best.failures):
            best = recorded
        if not recorded.failures:
            break
    return best or Recorded(samples={})


def call_together(
    module: torch.nn.Module, output: FactoryOutput, requests: Sequence[ValidRequest]
) -> list[Sample]:
    """What every method gives for several of the requests in one batch, where it takes them."""
    found = []
    for count in TOGETHER:
        # A single request beside itself, too.
        several = [requests[at % len(requests)] for at in range(count)]
        inputs, rows = inputs_of(several, output), sum(request.rows for request in several)
        for qualname in methods_of(output):
            outcome = call(module, output, qualname, rows, inputs)
            if isinstance(outcome, Sample):
                found.append(outcome)
    return found


def check_hidden(module: torch.nn.Module, output: FactoryOutput, signature: Signature) -> None:
    """Where features are hidden, so that no sample can be drawn, see whether the model answers.

    Raises:
        BuildError: `forward` raises on a row, however many features the hidden inputs have.
    """
    hidden = ", ".join(open_inputs(signature))
    if not hidden:
        return
    mend = (
        f"let PredictFactory.model_inputs_data() tell the features of {hidden}, which the model "
        "does not show, give requests with --samples"
    )
    if (fault := _try_features(module, output, signature)) is not None:
        message = f"samples: {FORWARD} {fault}, with one row; {mend}, {ALL_THE_SAME}"
        raise BuildError(message)
    logger.warning(
        "samples: none are drawn, so no worker tests itself and no error of an output is measured; "
        "%s",
        mend.replace(", give", ", or give"),
    )


def _try_features(
    module: torch.nn.Module, output: FactoryOutput, signature: Signature
) -> str | None:
    """Call `forward` with one row of ever other numbers of features.

    Returns:
        What it raised first; None when it answered.
    """
    of_weights = {value.shape[-1] for value in module.parameters() if value.dim() > 1}
    numbers = list(dict.fromkeys([1, *sorted(of_weights), *range(1, MOST_FEATURES + 1)]))
    hidden = open_inputs(signature)
    first = None
    stop = time.monotonic() + SECONDS_OF_TRYING
    for tried in itertools.product(numbers, repeat=len(hidden)):
        features = dict(zip(hidden, tried, strict=True))
        entries = [
            replace(entry, num_features=entry.num_features or features.get(entry.name))
            for entry in signature.inputs
        ]
        inputs = draw_inputs(entries, 1, STYLES[-1], np.random.default_rng(0))
        outcome = call(module, output, FORWARD, 1, inputs)
        if isinstance(outcome, Sample):
            return None
        first = first or outcome.said
        if time.monotonic() > stop:
            break
    return first


def check_failures(recorded: Recorded, *, are_drawn: bool, are_allowed: bool) -> None:
    """See that the model answers; methods beside `forward` may raise on some calls.

    Raises:
        BuildError: a method raised on all calls, or `forward` on some.
    """
    rows: dict[str, list[int]] = {}
    for failure in recorded.failures:
        rows.setdefault(failure.qualname, []).append(failure.rows)
    for qualname, failing in rows.items():
        first = next(one for one in recorded.failures if one.qualname == qualname)
        good = [
            sample.rows for (method, _), sample in recorded.samples.items() if method == qualname
        ]
        message = f"samples: {qualname} {first.said}, with {_listed(failing)} rows"
        if good:
            message += f", but not with {_listed(good)}"
        if are_allowed or (good and qualname != FORWARD):
            logger.warning("%s; these calls are not recorded", message)
            continue
        if not good and first.said.startswith("raised NotImplementedError"):  # left to be written
            message = f"samples: {qualname} {first.said}"
            raise BuildError(message)
        mend = "give requests that it takes with --samples" if are_drawn else "mend the samples"
        message += f"; {mend}, {ALL_THE_SAME}"
        raise BuildError(message)


def output_change(before: Recorded, after: Recorded) -> dict[str, float]:
    """The largest change of each method, over the calls that both models answered."""
    changes: dict[str, float] = {}
    for key, old in before.samples.items():
        if (new := after.samples.get(key)) is None:
            continue
        shapes = [
            {name: [list(part.shape) for part in parts] for name, parts in one.outputs.items()}
            for one in (old, new)
        ]
        if shapes[0] != shapes[1]:
            message = (
                f"samples: {old.qualname} with {old.rows} rows: the float model gives outputs of "
                f"the shapes {shapes[0]}, the quantized one {shapes[1]}"
            )
            raise BuildError(message)
        change = largest_change(old.outputs, new.outputs)
        changes[old.qualname] = max(changes.get(old.qualname, 0.0), change)
    return changes


def methods_of(output: FactoryOutput) -> list[str]:
    """Those that take the batched input."""
    return [name for name, entry in output.qualnames.items() if entry.need_preproc]


def inputs_of(requests: Sequence[ValidRequest], output: FactoryOutput) -> dict[str, torch.Tensor]:
    """Requests as one batch, as a sample holds it: of embeddings [F, B, D]."""
    batch = combine(requests, output.batching, CPU)
    return {
        name: torch.stack(value) if isinstance(value, list) else value
        for name, value in batch.inputs.items()
    }


def call(
    module: torch.nn.Module,
    output: FactoryOutput,
    qualname: str,
    rows: int,
    inputs: Mapping[str, torch.Tensor],
) -> Sample | Failure:
    """Call a method with what `inputs_of` gave for some rows."""
    try:
        outputs = call_recorded(module, qualname, inputs, output.result_metadata, CPU)
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        return Failure(qualname=qualname, rows=rows, said=said(error).removeprefix(f"{qualname}: "))
    return Sample(qualname=qualname, rows=rows, inputs=inputs, outputs=outputs)


def _growing(requests: Sequence[ValidRequest]) -> Iterator[ValidRequest]:
    for request in sorted(requests, key=lambda request: request.rows)[:MOST_CALLS]:
        yield request if request.rows <= BATCHES[-1] else take_rows(request, 0, BATCHES[-1])


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, dict.fromkeys(numbers))
    return f"{', '.join(others)} and {last}" if others else last
