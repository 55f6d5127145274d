"""What two versions of a model make of the same requests, and how far apart that is.

Shapes: B rows, N values.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrec_archiver.answer import Answering
from torchrec_archiver.samples import read_requests
from torchrec_handler.archive.format import SAMPLES
from torchrec_handler.archive.samples import Sample, read_samples
from torchrec_handler.errors import BuildError
from torchrec_handler.load.call import call_recorded, said
from torchrec_handler.serve.batch import combine
from torchrec_handler.serve.predict import predict

MOST_WORST = 5
"""Rows that are shown of an output."""

Values = npt.NDArray[Any]


class Call(NamedTuple):
    """One method called with one request."""

    qualname: str
    request: int
    """Its number, from 1 on."""
    outputs: Mapping[str, Sequence[Values]] | None
    """Output name -> its tensors; None where the method raised."""
    raised: str = ""


class Worst(NamedTuple):
    """One value of both versions."""

    request: int
    row: int
    """Position on the output's first axis."""
    a: float
    b: float


class Difference(NamedTuple):
    """How far apart two versions' answers are, in one tensor of one output."""

    qualname: str
    output: str
    rows: int
    """Of all requests: lengths of the first axis."""
    largest: float | None
    """Absolute; infinite where one value alone is not finite; None of ids and masks."""
    mean: float | None
    rank_correlation: float | None
    """Spearman's, of all values; None where one version gives a single value throughout."""
    differing: int
    """Values that are not the same."""
    worst: Sequence[Worst]
    """The rows that are furthest apart, each once."""


def ask_file(archive: Answering, path: Path) -> list[Call]:
    """Call every method that takes the batched input with each request of a file.

    Raises:
        BuildError: the file cannot be read, or a request is not one of this model's.
    """
    predictor = archive.predictor
    calls = []
    requests = read_requests(path, predictor.signature, archive.options, "requests")
    for number, request in enumerate(requests, 1):
        inputs = combine([request], predictor.batching, predictor.device).inputs
        for qualname in _methods(archive):
            try:
                found = predict(predictor.module, qualname, inputs, predictor.result_metadata)
                calls.append(Call(qualname, number, found))
            except Exception as error:  # noqa: BLE001  a user's model may raise anything
                calls.append(Call(qualname, number, None, said(error)))
    return calls


def samples_of(archive: Answering) -> list[Sample]:
    """The calls that an archive was recorded with.

    Raises:
        BuildError: there are none.
    """
    index = archive.predictor.index
    if index is None or not index.samples:
        message = f"requests: {archive.name} holds no recorded samples to compare with"
        raise BuildError(message, hint="give requests with --requests, one JSON body a line")
    return read_samples(archive.folder / SAMPLES)


def ask_samples(archive: Answering, samples: Sequence[Sample]) -> list[Call]:
    """Call the methods of recorded samples with their inputs; those that it does not have aside."""
    predictor, methods = archive.predictor, _methods(archive)
    calls = []
    for number, sample in enumerate(samples, 1):
        if sample.qualname not in methods:
            continue
        try:
            found = call_recorded(
                predictor.module,
                sample.qualname,
                sample.inputs,
                predictor.result_metadata,
                predictor.device,
            )
            outputs = {
                name: [np.atleast_1d(part.numpy()) for part in parts]
                for name, parts in found.items()
            }
            calls.append(Call(sample.qualname, number, outputs))
        except Exception as error:  # noqa: BLE001  a user's model may raise anything
            calls.append(Call(sample.qualname, number, None, said(error)))
    return calls


def differences(a: Sequence[Call], b: Sequence[Call]) -> tuple[list[Difference], list[str]]:
    """Compare calls of two versions.

    Returns:
        By method and output how far apart they are; and what could not be compared, and why.

    Raises:
        BuildError: an output has other shapes, or nothing can be compared.
    """
    others = {(call.qualname, call.request): call for call in b}
    pairs: dict[tuple[str, str, int], list[tuple[int, Values, Values]]] = {}
    left: dict[str, None] = {}
    for one in a:
        other = others.pop((one.qualname, one.request), None)
        if other is None:
            left[f"{one.qualname}: the second has no such method"] = None
            continue
        for which, call in (("first", one), ("second", other)):
            if call.outputs is None:
                left[f"{one.qualname}: request {one.request}: the {which} {call.raised}"] = None
        if one.outputs is None or other.outputs is None:
            continue
        for name in one.outputs.keys() ^ other.outputs.keys():
            which = "second" if name in one.outputs else "first"
            left[f"{one.qualname}: the {which} has no output {name!r}"] = None
        for name in (name for name in one.outputs if name in other.outputs):
            for part, (mine, its) in enumerate(_parts(one, other, name)):
                pairs.setdefault((one.qualname, name, part), []).append((one.request, mine, its))
    left |= dict.fromkeys(
        f"{call.qualname}: the first has no such method" for call in others.values()
    )
    if not pairs:
        message = "compare: the two have no answer in common: " + "; ".join(left)
        raise BuildError(message)
    several = {(qualname, name) for qualname, name, part in pairs if part}
    found = [
        _difference(qualname, f"{name}.{part}" if (qualname, name) in several else name, of)
        for (qualname, name, part), of in pairs.items()
    ]
    return found, list(left)


def _methods(archive: Answering) -> list[str]:
    named = archive.predictor.qualnames
    return [qualname for qualname, entry in named.items() if entry.need_preproc]


def _parts(one: Call, other: Call, name: str) -> Iterator[tuple[Values, Values]]:
    mine, its = (one.outputs or {})[name], (other.outputs or {})[name]
    shapes = [[part.shape for part in parts] for parts in (mine, its)]
    if shapes[0] != shapes[1]:
        message = (
            f"compare: {one.qualname}, request {one.request}, output {name!r}: the first gives "
            f"{_shapes(shapes[0])}, the second {_shapes(shapes[1])}"
        )
        raise BuildError(message, hint="only versions that answer in one shape can be compared")
    yield from zip(mine, its, strict=True)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _difference(
    qualname: str, output: str, pairs: Sequence[tuple[int, Values, Values]]
) -> Difference:
    requests = np.concatenate([np.full(len(mine), number) for number, mine, _ in pairs])
    rows = np.concatenate([np.arange(len(mine)) for _, mine, _ in pairs])
    a = _by_row([mine for _, mine, _ in pairs])
    b = _by_row([its for _, _, its in pairs])
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.abs(a - b), nan=np.inf)
    apart[same] = 0.0
    by_row = apart.max(axis=1, initial=0.0)
    is_measure = all({mine.dtype.kind, its.dtype.kind} == {"f"} for _, mine, its in pairs)
    worst = []
    for at in np.argsort(-by_row, kind="stable")[:MOST_WORST]:
        if by_row[at]:
            column = int(apart[at].argmax())
            values = float(a[at, column]), float(b[at, column])
            worst.append(Worst(int(requests[at]), int(rows[at]), *values))
    return Difference(
        qualname=qualname,
        output=output,
        rows=len(rows),
        largest=float(by_row.max(initial=0.0)) if is_measure else None,
        mean=float(apart.mean()) if is_measure and apart.size else None,
        rank_correlation=rank_correlation(a.ravel(), b.ravel()) if is_measure else None,
        differing=int((~same).sum()),
        worst=worst,
    )


def _by_row(outputs: Sequence[Values]) -> Values:
    """Outputs of several calls as one [rows, values of a row]."""
    return np.concatenate([part.reshape(len(part), -1) for part in outputs]).astype(float)


def rank_correlation(a: Values, b: Values) -> float | None:
    """Spearman's: 1 where both put N values into one order, whatever the values are.

    Args:
        a: [N]
        b: [N]

    Returns:
        None where that is no number: fewer than two values, or all of one version's equal.
    """
    first, second = _ranks(a), _ranks(b)
    if a.size < 2 or not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Values) -> Values:
    """Equal values have the mean of their ranks."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[where]
    return ranks
