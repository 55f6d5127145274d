"""Last step of loading: replay recorded samples, which warms the model up and checks it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from torchrec_handler.archive.delta_parts import said as short
from torchrec_handler.archive.format import DenseDtypes
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import SelfTestError
from torchrec_handler.load.call import call_recorded, said
from torchrec_handler.options import PRECISIONS, DenseDtype, Options

MOST_SWAPPED = 0.1
"""The share of integers that may differ."""

AT_BUILD = "this worker's model does not answer as it did when the archive was built"

LEAST = 1e-9
"""Less is let pass: rounding changes the first digit of a sigmoid that is as good as 0."""

Outputs = Mapping[str, tuple[torch.Tensor, ...]]
"""Of one call: output name -> its tensors."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an output may be off: `relative` to itself, plus `floor` of the largest one.

    What two processors make of the same sums differs by rounding, in lower precision by more.
    """

    relative: float
    floor: float
    absolute: float = LEAST
    """What an output may be off by in any case."""


TOLERANCES: Mapping[DenseDtype, Tolerance] = {
    "float32": Tolerance(relative=1e-3, floor=1e-4),
    "float16": Tolerance(relative=4e-3, floor=2e-3),
    "bfloat16": Tolerance(relative=8e-3, floor=4e-3),
    "int8": Tolerance(relative=2e-2, floor=2e-2),
}
"""By the least precise type that anything computes in."""


def tolerance_of(options: Options, dense: DenseDtypes | None) -> Tolerance:
    """How exact outputs can be.

    Args:
        options: of the worker.
        dense: what was decided by layer; another processor may compute any of it in float32.
    """
    if dense is None:
        return TOLERANCES[options.precision]
    types = {*dense.dtypes.values(), options.sharding.exchange_dtype}
    least = next(one for one in reversed(PRECISIONS) if one in types)
    return replace(TOLERANCES[least], absolute=max(dense.allowed, LEAST))


def self_test(
    module: torch.nn.Module,
    samples: Iterable[Sample],
    result_metadata: str,
    tolerance: Tolerance,
    device: torch.device,
) -> None:
    """Replay samples in the order they were recorded in, small batches first.

    Args:
        module: ready to serve.
        samples: from the archive.
        result_metadata: one of TorchRec's result types.
        tolerance: how exact the outputs can be, see `tolerance_of`.
        device: where to serve.

    Raises:
        SelfTestError: the module raised, or an output is off; says which and by how much.
    """
    for sample in samples:
        outputs = answer(module, sample, result_metadata, device)
        check_outputs(sample, outputs, sample.outputs, tolerance, AT_BUILD)


def answer(
    module: torch.nn.Module, sample: Sample, result_metadata: str, device: torch.device
) -> Outputs:
    """What a module gives to a sample's inputs.

    Raises:
        SelfTestError: it raised.
    """
    try:
        return call_recorded(module, sample.qualname, sample.inputs, result_metadata, device)
    except Exception as error:
        message = f"{_where(sample)}: {said(error)}"
        raise SelfTestError(message) from error


def check_outputs(
    sample: Sample, received: Outputs, expected: Outputs, tolerance: Tolerance, ending: str
) -> None:
    """See that a module gives to a sample what was recorded.

    Args:
        sample: of the archive.
        received: what the module gives.
        expected: what was recorded.
        tolerance: how far apart they may be.
        ending: how the message ends.

    Raises:
        SelfTestError: it gives something else; says what, and by how much.
    """
    _check_form(sample, received, expected)
    for name, parts in expected.items():
        for given, wanted in zip(received[name], parts, strict=True):
            compare(f"{_where(sample)}, output {name!r}", given, wanted, tolerance, ending)


def check_kind(sample: Sample, received: Outputs) -> None:
    """See that other weights give to a sample outputs of the shapes and types that it has.

    And finite ones, where the sample's are.

    Raises:
        SelfTestError: they do not.
    """
    _check_form(sample, received, sample.outputs)
    for name, parts in sample.outputs.items():
        where = f"{_where(sample)}, output {name!r}"
        for given, own in zip(received[name], parts, strict=True):
            if given.shape != own.shape or given.dtype != own.dtype:
                message = (
                    f"{where}: received {given.dtype} {tuple(given.shape)}, expected {own.dtype} "
                    f"{tuple(own.shape)}, as the archive's"
                )
                raise SelfTestError(message)
            if own.isfinite().all() and not given.isfinite().all():
                message = f"{where}: holds numbers that are not finite, as the archive's are"
                raise SelfTestError(message)


def _check_form(sample: Sample, received: Outputs, expected: Outputs) -> None:
    forms = [{name: len(parts) for name, parts in one.items()} for one in (received, expected)]
    if forms[0] == forms[1]:
        return
    given, wanted = (
        short(", ".join(f"{name} ({count})" if count > 1 else name for name, count in form))
        for form in map(sorted, map(dict.items, forms))
    )
    message = f"{_where(sample)}: received the outputs {given}, expected {wanted}"
    raise SelfTestError(message)


def _where(sample: Sample) -> str:
    return f"self-test: {sample.qualname}, sample of {sample.rows} rows"


def largest_change(before: Outputs, after: Outputs) -> float:
    """The largest absolute difference between two calls' floating point outputs.

    Ids and masks are left out: their differences are no measure. It is infinite where one value
    alone is not finite.
    """
    return max(
        (
            _largest_difference(old.double(), new.double())
            for name, parts in before.items()
            for old, new in zip(parts, after[name], strict=True)
            if old.numel() and old.is_floating_point()
        ),
        default=0.0,
    )


def _largest_difference(old: torch.Tensor, new: torch.Tensor) -> float:
    same = (old == new) | (old.isnan() & new.isnan())
    return float(
        (old - new).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(same, 0.0).max()
    )


def compare(
    where: str,
    received: torch.Tensor,
    expected: torch.Tensor,
    tolerance: Tolerance,
    ending: str = AT_BUILD,
) -> None:
    """See that an output is another.

    Raises:
        SelfTestError: its shape differs, or its values by more than the tolerance.
    """
    if received.shape != expected.shape:
        message = (
            f"{where}: received shape {tuple(received.shape)}, expected {tuple(expected.shape)}"
        )
        raise SelfTestError(message)
    if not expected.is_floating_point():
        _compare_exact(where, received, expected, ending)
        return
    wanted, given = expected.double().flatten(), received.double().flatten()
    size = wanted.abs()
    finite = size.isfinite()
    largest = size[finite].max() if bool(finite.any()) else size.new_zeros(())
    allowed = tolerance.relative * size + tolerance.floor * largest
    allowed = allowed.clamp(min=tolerance.absolute)
    # What is not finite has to be the same; a NaN is never within a tolerance.
    same = (given == wanted) | (given.isnan() & wanted.isnan())
    bad = ~(same | (finite & ((given - wanted).abs() <= allowed)))
    if bool(bad.any()):
        position = int(bad.int().argmax())
        message = (
            f"{where}[{position}]: received {float(received.flatten()[position]):.6g}, expected "
            f"{float(wanted[position]):.6g}, at most {float(allowed[position]):.2g} apart; "
            f"{ending}"
        )
        raise SelfTestError(message)


def _compare_exact(where: str, received: torch.Tensor, expected: torch.Tensor, ending: str) -> None:
    """Ids and masks: equal, but for the few that a near tie of scores may swap."""
    differing = int((received != expected).sum())
    if differing > MOST_SWAPPED * expected.numel():
        message = (
            f"{where}: {differing} of {expected.numel()} values differ, expected at most "
            f"{MOST_SWAPPED:.0%}; {ending}"
        )
        raise SelfTestError(message)
