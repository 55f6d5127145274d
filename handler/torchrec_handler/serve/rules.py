"""The rules of an input, run once over what several requests give it.

The rules are TorchRec's Validation.cpp (lengths not negative, their sum the number of ids) and
those that keep a lookup inside its table. Those of shapes are `measure`'s.

Letters in shapes: R requests, L lists that a request gives of a feature, B or 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import OUT_OF_RANGE, InputSignature
from torchrec_handler.errors import InvalidRequest, RequestError, RequestTooLarge
from torchrec_handler.options import Options
from torchrec_handler.serve.arrays import Array, as_floats, cut, firsts, join, unsigned
from torchrec_handler.serve.measure import count_features
from torchrec_handler.serve.out_of_range import OutOfRange
from torchrec_handler.serve.raw import defaults, filled, hashing, of_each, shortened
from torchrec_handler.serve.request import Columns, Floats, Ids, Lengths, Mask, Sparse

REJECT, ZERO, MODULO, DROP = range(len(OUT_OF_RANGE))

INT32_IDS = 2**31
INT64_IDS = 2**63
"""How many ids there are below 0 and from 0 on, each."""


class RefusedError(Exception):
    """Some of the requests break a rule: position -> error. Of the others nothing is said."""

    def __init__(self, errors: Mapping[int, RequestError]) -> None:
        super().__init__()
        self.errors = errors


class FloatRules:
    """Of a dense or an embedding input."""

    def __init__(self, entry: InputSignature) -> None:
        self._name = entry.name
        self._is_dense = entry.type == "dense"
        self._defaults = defaults(entry)

    def __call__(self, requests: Sequence[Columns], rows: int) -> Sequence[Floats]:
        """Blocks [B, F], or [B, F, D]; what is shared takes no memory."""
        given = [columns.arrays[self._name] for columns in requests]
        shape = given[0].shape
        block = (1, *shape) if len(shape) == 1 else shape
        floats = as_floats(given).reshape(len(given), *block)
        if self._defaults is not None:
            floats = filled(floats, self._defaults)
        if not np.isfinite(floats).all():
            raise _not_finite(self._name, given, floats)
        if not self._is_dense:
            floats = floats.transpose(0, 2, 1, 3)
        if floats.shape[1] != rows:
            floats = np.broadcast_to(floats, (len(given), rows, *floats.shape[2:]))
        return list(floats)


class SparseRules:
    """Of a sparse or a weighted sparse input."""

    def __init__(self, entry: InputSignature, options: Options, out_of_range: OutOfRange) -> None:
        self._entry = entry
        self._out_of_range = out_of_range
        self._lengths = f"{entry.name}.lengths"
        self._values = f"{entry.name}.values"
        self._weights = f"{entry.name}.weights" if entry.type == "weighted_sparse" else None
        self._most_ids = options.limits.ids_per_request
        policies = entry.out_of_range or (None,)
        self._policies = np.array(
            [OUT_OF_RANGE.index(one or options.out_of_range_ids) for one in policies]
        )
        self._drops = bool((self._policies == DROP).any())
        self._hash = hashing(entry)
        self._last_ids = last_ids(entry)
        self._longest = longest_lists(entry)
        self._dtype = np.int64 if entry.is_wide else np.int32

    def __call__(self, requests: Sequence[Columns], rows: int) -> Sequence[Sparse]:
        """Lists of each request; those that are for all rows stand in the first one."""
        arrays = [columns.arrays for columns in requests]
        given = [own[self._lengths] for own in arrays]
        features = self._entry.num_features or count_features(given[0].shape, rows)
        lengths = join(given).reshape(len(given), features, -1)
        self._check_lengths(lengths)
        ids = [own[self._values] for own in arrays]
        sizes = [own.size for own in ids]
        counts = lengths.sum(axis=2, dtype=np.int64)
        self._check_sums(counts, sizes)
        weights: Sequence[Floats | None] = [None] * len(requests)
        if self._weights:
            given = [own[self._weights] for own in arrays]
            floats = as_floats(given)
            weights = cut(floats, sizes)
            if not np.isfinite(floats).all():
                raise _not_finite(self._weights, given, weights)
        if not self._drops:
            self._check_longest(lengths)
        values = join(ids) if self._hash is None else self._hash(join(ids), counts)
        values, dropped = self._in_range(values, counts, sizes)
        if dropped is not None:
            kept = ~dropped
            values, lengths = values[kept], shortened(lengths, dropped)
            sizes = lengths.sum(axis=(1, 2)).tolist()
            if self._weights:
                weights = cut(floats[kept], sizes)
        if self._drops:
            self._check_longest(lengths)
        values = values.astype(self._dtype)
        parts = zip(lengths.astype(np.int32), cut(values, sizes), weights, strict=True)
        if rows == 1:
            return list(starmap(Sparse, parts))
        masks = [columns.shared.get(self._entry.name) for columns in requests]
        return [
            _sparse(own, ids, each, mask, rows)
            for (own, ids, each), mask in zip(parts, masks, strict=True)
        ]

    def _check_lengths(self, lengths: Array) -> None:
        """See that no length is negative, nor so large that a sum of them may overflow."""
        if unsigned(lengths).max() <= self._most_ids:
            return
        if lengths.min() < 0:
            least = [(at, int(lengths[at].argmin())) for at, _ in firsts(lengths < 0)]
            raise RefusedError(
                {
                    at: InvalidRequest(
                        where=f"{self._lengths}[{position}]",
                        received=str(lengths[at].flat[position]),
                        expected="0 or more",
                    )
                    for at, position in least
                }
            )
        bad = lengths > self._most_ids
        most = [(at, int(lengths[at].argmax())) for at, _ in firsts(bad)]
        raise RefusedError(
            {
                at: RequestTooLarge(
                    where=f"{self._lengths}[{position}]",
                    received=str(lengths[at].flat[position]),
                    expected=f"at most {self._most_ids} (limits.ids_per_request)",
                )
                for at, position in most
            }
        )

    def _check_sums(self, counts: Array, sizes: Sequence[int]) -> None:
        totals = counts.sum(axis=1).tolist()
        if totals != sizes:
            raise RefusedError(
                {
                    at: InvalidRequest(
                        where=self._values,
                        received=f"{size} ids",
                        expected=f"{total}, the sum of {self._lengths}",
                    )
                    for at, (size, total) in enumerate(zip(sizes, totals, strict=True))
                    if size != total
                }
            )

    def _check_longest(self, lengths: Array) -> None:
        """See that every id has a weight for its position in its list."""
        longest = self._longest
        if longest is None:
            return
        bad = lengths > longest[:, None]
        if bad.any():
            errors: dict[int, RequestError] = {}
            for at, position in firsts(bad):
                feature, row = divmod(position, lengths.shape[2])
                errors[at] = InvalidRequest(
                    where=self._lengths,
                    received=f"{lengths[at, feature, row]} ids{self._of(feature)} in row {row}",
                    expected=f"at most {longest[feature]}, the positions that have a weight",
                )
            raise RefusedError(errors)

    def _in_range(
        self, values: Array, counts: Array, sizes: Sequence[int]
    ) -> tuple[Array, Mask | None]:
        """The ids of all requests, [N]; those out of range are refused, replaced or to be dropped.

        Args:
            values: as they came.
            counts: of each request's features, [R, F].
            sizes: of each request, [R].

        Returns:
            The ids, and which of them to drop, [N]; None where there is nothing to drop.
        """
        last = of_each(self._last_ids, counts, values.size)
        bad = unsigned(values) > unsigned(last)
        if not bad.any():
            return values, None
        policies = of_each(self._policies, counts, values.size)
        refused = bad & (policies == REJECT)
        if not refused.any():
            self._out_of_range.add(self._entry.name, bad, counts, is_refused=False)
            remainders = values % (np.minimum(last, INT64_IDS - 2) + 1)
            replaced = np.where(bad & (policies == MODULO), remainders, values)
            replaced = np.where(bad & (policies == ZERO), 0, replaced)
            return replaced, bad & (policies == DROP) if self._drops else None
        # The other requests are checked once more, and counted then.
        requests = np.arange(len(sizes)).repeat(sizes)
        of_refused = np.isin(requests, requests[refused])
        self._out_of_range.add(self._entry.name, bad & of_refused, counts, is_refused=True)
        errors: dict[int, RequestError] = {}
        own, own_last = cut(values, sizes), cut(last, sizes)
        for at, position in firsts(cut(refused, sizes)):
            feature = int(np.searchsorted(np.cumsum(counts[at]), position, side="right"))
            errors[at] = InvalidRequest(
                where=f"{self._values}[{position}]",
                received=f"id {own[at][position]}{self._of(feature)}",
                expected=f"0 to {own_last[at][position]}",
            )
        raise RefusedError(errors)

    def _of(self, feature: int) -> str:
        features = self._entry.features
        return f" of feature {features[feature]!r}" if features else ""


def last_ids(entry: InputSignature) -> npt.NDArray[np.int64]:
    """The largest id of each feature [F], or [1] where their number is not known."""
    any_id = (INT64_IDS if entry.is_wide else INT32_IDS) - 1
    known = entry.ids_below or (None,) * (entry.num_features or 1)
    return np.array([any_id if rows is None else rows - 1 for rows in known], dtype=np.int64)


def longest_lists(entry: InputSignature) -> npt.NDArray[np.int64] | None:
    """How many ids each feature may have in a row [F]; None where all may have any number."""
    if all(most is None for most in entry.longest):
        return None
    longest = [INT64_IDS - 1 if most is None else most for most in entry.longest]
    return np.array(longest, dtype=np.int64)


def _not_finite(where: str, given: Sequence[Array], floats: Iterable[Floats]) -> RefusedError:
    """For requests' arrays as they came, and as float32 of the shape that the client is told of."""
    errors: dict[int, RequestError] = {}
    for at, own in enumerate(floats):
        bad = ~np.isfinite(own)
        if bad.any():
            index = "".join(f"[{part}]" for part in np.argwhere(bad)[0])
            errors[at] = InvalidRequest(
                where=f"{where}{index}",
                received=str(given[at].flat[int(bad.argmax())]),
                expected="a finite float32",
            )
    return RefusedError(errors)


def _sparse(
    lengths: Lengths, values: Ids, weights: Floats | None, shared: Mask | None, rows: int
) -> Sparse:
    """What lists [F, L] are for all rows stands in the first one; empty ones are alike anyway."""
    if lengths.shape[1] < rows:
        lengths = np.pad(lengths, ((0, 0), (0, rows - 1)))
        shared = np.ones(len(lengths), np.bool_)
    if shared is not None:
        shared = shared & (lengths[:, 0] > 0)
        shared = shared if shared.any() else None
    return Sparse(lengths=lengths, values=values, weights=weights, shared=shared)
