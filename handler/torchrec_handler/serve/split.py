"""One result back into the answers of its requests: TorchRec's ResultSplit.cpp.

Outputs may hold values for ids, too, where TorchRec knows rows only.

Letters in shapes: R requests, F features, N the length of a first axis.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import Count, OutputSplit
from torchrec_handler.errors import PredictError
from torchrec_handler.serve.predict import HostArray, HostResult
from torchrec_handler.serve.request import Sparse, ValidRequest
from torchrec_handler.serve.transposed import transposed

Answer = dict[str, Any]
"""Output name -> what the answer's format writes: arrays, lists of arrays, or values and mask."""

Sizes = npt.NDArray[np.int64]


class Splitter:
    """Cuts the results of one method, and joins those of a request that was cut by rows.

    A tensor holds k values for each row, or for each id of some features: of one feature the
    requests' ids lie one behind another; of several, feature by feature, so a request's values
    are picked out of each. Masks that do not follow the batch go to every request whole.
    """

    def __init__(self, splits: Mapping[str, Sequence[OutputSplit]], result_metadata: str) -> None:
        """Take the signature's splits of the method, and one of TorchRec's result types."""
        self._splits = splits
        self._is_masked = result_metadata == "dict_with_mask_tensor"
        counts = [part.counts for parts in splits.values() for part in parts]
        self.cuts_rows = not self._is_masked and all(
            count.input is None and not others for count, *others in counts
        )
        """Whether all that the method gives are values of rows, and none goes to requests whole."""
        self._inputs = {
            count.input
            for parts in splits.values()
            for part in parts
            for count in part.counts
            if count.input is not None
        }

    def rows(self, result: HostResult, rows: int) -> list[HostResult]:
        """Cut the result of requests of a row each, where it `cuts_rows`."""
        names = tuple(result)
        outputs = [
            zip(*[_rows(tensor, rows) for tensor in tensors], strict=True)
            for tensors in result.values()
        ]
        return [dict(zip(names, own, strict=True)) for own in zip(*outputs, strict=True)]

    def split(self, result: HostResult, requests: Sequence[ValidRequest]) -> list[HostResult]:
        """Cut a result.

        Args:
            result: output name -> tensors.
            requests: in the order in which they were combined.

        Raises:
            PredictError: a tensor is not what the signature says. What lies behind the first axis
                is left open for a request alone, which needs no cutting.
        """
        measured = _Measured(requests, self._inputs)
        answers: list[HostResult] = [{} for _ in requests]
        for name, tensors in result.items():
            pieces = [
                [tensor] * len(requests) if known is None else _cut(where, tensor, known, measured)
                for where, tensor, known in self._parts(name, tensors)
            ]
            for request, parts in zip(answers, zip(*pieces, strict=True), strict=True):
                request[name] = parts
        return answers

    def join(self, pieces: Sequence[HostResult], requests: Sequence[ValidRequest]) -> HostResult:
        """Put the results of a request that was cut by rows together again.

        Args:
            pieces: what `split` gave.
            requests: the pieces of the request.

        Raises:
            PredictError: the pieces have different shapes behind the first axis.
        """
        if len(pieces) == 1:
            return pieces[0]
        measured = _Measured(requests, self._inputs)
        joined: HostResult = {}
        for name, tensors in pieces[0].items():
            joined[name] = tuple(
                tensor
                if known is None
                else _join(where, [piece[name][at] for piece in pieces], known, measured)
                for at, (where, tensor, known) in enumerate(self._parts(name, tensors))
            )
        return joined

    def _parts(
        self, name: str, tensors: Sequence[HostArray]
    ) -> list[tuple[str, HostArray, OutputSplit | None]]:
        """What to call each tensor of an output, the tensor, and its split; None: not cut."""
        where = f"output {name!r}"
        known: Sequence[OutputSplit | None] | None = self._splits.get(name)
        if self._is_masked and known is not None and len(known) == 1:
            known = [*known, None]
        if known is None or len(known) != len(tensors):
            received = "was not given" if known is None else f"had {len(known)} tensors"
            message = (
                f"{received} when the model was observed, so it is not known whose its values are"
            )
            raise PredictError(message, where=where)
        return [(where, tensor, part) for tensor, part in zip(tensors, known, strict=True)]


def answer(result: HostResult, result_metadata: str) -> Answer:
    """One request's result in the shape of its answer."""
    if result_metadata == "dict_of_tensor":
        return {name: tensors[0] for name, tensors in result.items()}
    if result_metadata == "dict_of_tensors":
        return {name: list(tensors) for name, tensors in result.items()}
    return {name: {"values": values, "mask": mask} for name, (values, mask) in result.items()}


class _Measured:
    """How many rows and ids each request has; what its rows share counts in each of them."""

    def __init__(self, requests: Sequence[ValidRequest], inputs: Collection[str]) -> None:
        self.requests = sum(request.requests for request in requests)
        self.ends = list(accumulate(request.rows for request in requests))
        """Of each request's rows."""
        self._requests = requests
        self._ids = {
            name: np.stack([_ids(request, name) for request in requests]) for name in inputs
        }

    def of(self, count: Count) -> Sizes:
        """[R, F]: values of each request in each feature; one column where rows are counted."""
        if count.input is None:
            rows = np.array([request.rows for request in self._requests])
            return rows[:, None] * count.factor
        ids = self._ids[count.input]
        taken: Sizes = ids[:, list(count.features)] if count.features else ids
        return taken * count.factor


def _ids(request: ValidRequest, name: str) -> Sizes:
    """Ids of a request in each feature, [F]."""
    sparse = cast("Sparse", request.inputs[name])
    sizes: Sizes = sparse.lengths.sum(axis=1, dtype=np.int64)
    return sizes if sparse.shared is None else sizes * np.where(sparse.shared, request.rows, 1)


def _rows(tensor: HostArray, rows: int) -> list[HostArray]:
    return list(tensor.reshape(rows, len(tensor) // rows, *tensor.shape[1:]))


def _cut(where: str, tensor: HostArray, known: OutputSplit, measured: _Measured) -> list[HostArray]:
    count, *others = known.counts
    rows = measured.ends[-1]
    is_of_rows = not others and count.input is None
    if is_of_rows and tensor.shape == (rows * count.factor, *known.shape):
        # Most outputs of most models, for which all below is too long a way.
        ends = [end * count.factor for end in measured.ends]
        return [tensor[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if tensor.ndim == len(known.shape):
        tensor = tensor[None]  # a model that squeezes what it gives takes a batch's one row for it
    sizes = _fitting(where, tensor, known, measured)
    if measured.requests > 1 and tensor.shape[1:] != known.shape:
        expected = f"({', '.join(['…', *map(str, known.shape)])})"
        raise PredictError(where=where, received=f"shape {tensor.shape}", expected=expected)
    if sizes.shape[1] > 1:
        tensor = tensor[transposed(sizes.T)]
    ends = np.cumsum(sizes.sum(axis=1)).tolist()
    return [tensor[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _join(
    where: str, pieces: Sequence[HostArray], known: OutputSplit, measured: _Measured
) -> HostArray:
    if len({piece.shape[1:] for piece in pieces}) > 1:
        shapes = " and ".join(map(str, dict.fromkeys(piece.shape for piece in pieces)))
        received = f"shapes {shapes} for a request that was cut by rows"
        raise PredictError(where=where, received=received)
    tensor = np.concatenate(pieces)
    sizes = _fitting(where, tensor, known, measured)
    return tensor[transposed(sizes)] if sizes.shape[1] > 1 else tensor


def _fitting(where: str, tensor: HostArray, known: OutputSplit, measured: _Measured) -> Sizes:
    """[R, F]: values of each request in each feature, by what the first axis counts."""
    possible = [measured.of(count) for count in known.counts]
    fitting = [sizes for sizes in possible if sizes.sum() == tensor.shape[0]]
    if not fitting:
        expected = " or ".join(
            _shown(count, sizes) for count, sizes in zip(known.counts, possible, strict=True)
        )
        raise PredictError(
            where=where, received=f"shape {tensor.shape}", expected=f"a first axis of {expected}"
        )
    if not all(np.array_equal(fitting[0], sizes) for sizes in fitting[1:]):
        message = "it cannot be told whether its values are for rows or for ids"
        raise PredictError(message, where=where)
    return fitting[0]


def _shown(count: Count, sizes: Sizes) -> str:
    total = int(sizes.sum())
    what = "rows" if count.input is None else f"ids of {count.input}"
    if count.features:
        what += f", features {', '.join(map(str, count.features))}"
    return f"{count.factor} x {total // count.factor} {what}"
