"""What the first axis of every output counts, found out by calling the methods.

They get batches in which rows, and the ids of every sparse input and feature, are all of different
numbers; what fits all of the outputs is taken, and what cannot be told is not guessed.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from torchrec_handler.archive.format import OutputSplit, Signature
from torchrec_handler.archive.samples import Sample
from torchrec_handler.load.call import call_recorded, said
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.self_test import TOLERANCES
from torchrec_handler.load.signature.counts import (
    CannotCutError,
    IsPaddedError,
    Method,
    Seen,
    see,
    sizes,
)
from torchrec_handler.load.signature.draw import STYLES, Style, draw_inputs, open_inputs
from torchrec_handler.load.signature.together import Inputs, find_mixed
from torchrec_handler.load.signature.told import read_told
from torchrec_handler.options import DenseDtype

logger = logging.getLogger(__name__)

LONG, LONG_ROWS = 130, 5
"""Ids of a long list, and rows of the batch that has some: models that pad their lists do it to 8,
32 or 128."""

LEAST_PROBES, MOST_PROBES = 4, 16
"""Batches of a style: as many as it takes for all that may be counted to differ."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What calling the methods has shown."""

    splits: Mapping[str, Mapping[str, tuple[OutputSplit, ...]]]
    """qualname -> output name -> how its tensors are cut."""
    untold: Mapping[str, str]
    """qualname -> the output that nobody can cut, and what to do."""
    padded: Mapping[str, str]
    """qualname -> the output whose shape behind the first axis depends on the batch."""
    mixed: Mapping[str, str]
    """qualname -> the output whose values a batch does not hold request by request."""
    raised: Mapping[str, str]
    """qualname -> what it raised on all that was drawn."""
    alone: Sequence[str]
    """Methods of which each request is a forward call of its own."""

    def warn(self) -> None:
        """Say which they are, and why."""
        for message in (*self.untold.values(), *self.padded.values(), *self.mixed.values()):
            logger.warning("outputs: %s", message)
        if self.alone:
            logger.warning(
                "outputs: requests of %s are called one by one, since it is not known how to cut "
                "what a batch gives",
                ", ".join(self.alone),
            )


def observe_outputs(  # noqa: PLR0913
    output: FactoryOutput,
    signature: Signature,
    module: torch.nn.Module,
    device: torch.device,
    *,
    samples: Sequence[Sample] = (),
    precision: DenseDtype = "float32",
) -> Outputs:
    """Call every method that takes the batched input.

    Args:
        output: the factory's metadata.
        signature: of the module's inputs; where it leaves features open, nothing is drawn.
        module: ready to serve.
        device: where to serve.
        samples: what was recorded of the module shows more.
        precision: `Options.precision`, which tells how exact the outputs can be.

    Raises:
        FactoryError: `model_inputs_data` says of an output what is not so.
    """
    told = read_told(output, signature)
    splits: dict[str, dict[str, tuple[OutputSplit, ...]]] = {}
    untold: dict[str, str] = {}
    padded: dict[str, str] = {}
    mixed: dict[str, str] = {}
    raised: dict[str, str] = {}
    methods = [name for name, entry in output.qualnames.items() if entry.need_preproc]
    for qualname in methods:
        seen, fault = try_method(qualname, output, signature, module, device)
        if fault and not seen:
            raised[qualname] = fault
        seen += [
            see(signature, sample.inputs, sample.rows, sample.outputs)
            for sample in samples
            if sample.qualname == qualname and sample.rows > 1
        ]
        if len({one.rows for one in seen}) < 2:
            continue
        method = Method(qualname, seen, signature, told)
        found = splits[qualname] = {}
        for name in method.outputs:
            try:
                found[name] = method.split(name)
            except CannotCutError as error:
                untold.setdefault(qualname, str(error))
            except IsPaddedError as error:
                padded.setdefault(qualname, str(error))
        again = partial(_see, qualname, output, signature, module, device)
        for name in find_mixed(again, seen, signature, found, TOLERANCES[precision]):
            mixed.setdefault(qualname, method.say_mixed(name, found[name]))
    told.check(is_complete=splits.keys() == set(methods))
    open_ones = untold.keys() | padded.keys() | mixed.keys()
    alone = [name for name in methods if name not in splits or name in open_ones]
    return Outputs(
        splits={qualname: found for qualname, found in splits.items() if qualname not in alone},
        alone=alone,
        untold=untold,
        padded=padded,
        mixed=mixed,
        raised=raised,
    )


def probes(signature: Signature, style: Style) -> Iterator[tuple[int, Mapping[str, torch.Tensor]]]:
    """Draw batches whose sizes tell apart all that may be counted.

    Yields:
        The rows of a batch, and the batch.
    """
    generator = np.random.default_rng(0)
    seen: list[list[int]] = []
    longest = range(style.most, max(style.least, 1) - 1, -1)
    for number in range(MOST_PROBES):
        rows = 2 + number
        # Not always as long, for what is padded to the longest list of a batch.
        shorter = replace(style, most=longest[number % len(longest)])
        inputs = draw_inputs(signature.inputs, rows, shorter, generator)
        yield rows, inputs
        seen.append(list(sizes(signature, inputs, rows).values()))
        if number + 1 >= LEAST_PROBES and _directions(seen) >= _most_directions(signature, style):
            return


def _with_long_lists(signature: Signature, style: Style) -> tuple[int, Inputs]:
    """A batch of short lists and, in its last row, long ones: beyond what short ones are padded to.

    Returns:
        Its rows, and the batch.
    """
    long = replace(style, least=max(style.least, 1), last=LONG)
    return LONG_ROWS, draw_inputs(signature.inputs, LONG_ROWS, long, np.random.default_rng(0))


def _directions(seen: Sequence[Sequence[int]]) -> int:
    """How many columns of sizes are no multiples of others."""
    columns = np.array(seen).T
    reduced = columns // np.maximum(np.gcd.reduce(columns, axis=1), 1)[:, None]
    return len(np.unique(reduced, axis=0))


def _most_directions(signature: Signature, style: Style) -> int:
    """In batches of a style, where lists that are alike have sizes that are multiples."""
    features = [entry.num_features or 1 for entry in signature.inputs if "sparse" in entry.type]
    if style.least == style.most or not features:
        return 1
    # Rows, then features, and inputs of more than one.
    every = 1 + sum(count + (count > 1) for count in features)
    return {"none": every, "input": 1 + len(features), "all": 2}[style.alike]


def try_method(
    qualname: str,
    output: FactoryOutput,
    signature: Signature,
    module: torch.nn.Module,
    device: torch.device,
) -> tuple[list[Seen], str | None]:
    """Call a method on batches of one style after another, until it takes all of one.

    Returns:
        The calls of that style, since what goes well beside others may do so by chance; where there
        is none, all that it took, and what it raised first.
    """
    if open_inputs(signature):
        return [], _missing_input(qualname, output, signature, module, device)
    all_seen: list[Seen] = []
    first_fault = None
    for style in STYLES:
        seen: list[Seen] = []
        try:
            for rows, inputs in probes(signature, style):
                seen.append(_see(qualname, output, signature, module, device, rows, inputs))
        except Exception as error:  # noqa: BLE001  a user's model may raise anything
            first_fault = first_fault or said(error)
            all_seen += seen
            continue
        if style.most > style.least and device.type == "cpu":
            rows, inputs = _with_long_lists(signature, style)
            with suppress(Exception):  # not every model takes them
                seen.append(_see(qualname, output, signature, module, device, rows, inputs))
        return seen, None
    return all_seen, first_fault


def _see(  # noqa: PLR0913, PLR0917
    qualname: str,
    output: FactoryOutput,
    signature: Signature,
    module: torch.nn.Module,
    device: torch.device,
    rows: int,
    inputs: Inputs,
) -> Seen:
    given = call_recorded(module, qualname, inputs, output.result_metadata, device)
    return see(signature, inputs, rows, given)


def _missing_input(
    qualname: str,
    output: FactoryOutput,
    signature: Signature,
    module: torch.nn.Module,
    device: torch.device,
) -> str | None:
    """What a method raises that reads an input which is not there: that shows on any batch."""
    inputs = draw_inputs(signature.inputs, 1, STYLES[-1], np.random.default_rng(0))
    try:
        call_recorded(module, qualname, inputs, output.result_metadata, device)
    except KeyError as error:
        (key,) = error.args or (None,)
        return said(error) if isinstance(key, str) and key not in inputs else None
    except Exception:  # noqa: BLE001  it may be the number of features that it does not take
        return None
    return None
