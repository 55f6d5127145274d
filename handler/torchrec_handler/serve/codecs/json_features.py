"""Features of some rows that are Python objects, to columns."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter, methodcaller
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.hashing import to_ids
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs.json_document import shortened, shown
from torchrec_handler.serve.codecs.row_blocks import check_repeated
from torchrec_handler.serve.request import Columns, Mask

INSTANCES = "instances"
SHARED = "shared"

NUMBERS = frozenset({int, float})
NUMBERS_OR_NULL = NUMBERS | {type(None)}
RAW = frozenset({int, str})

Row = dict[str, Any]

Vectors = dict[str, npt.NDArray[Any]]
"""Name -> [1, D], of what all rows share."""


class Rows(list[Row]):
    """Some rows of a request, in order."""

    def __init__(self, rows: Iterable[Row], first: int) -> None:
        super().__init__(rows)
        self.first = first
        """How many stand before them."""


def decode_rows(
    rows: Rows, shared: Row, vectors: Vectors, signature: Signature, limits: Limits
) -> tuple[Columns, frozenset[str]]:
    """Read a block of rows.

    Args:
        rows: the block.
        shared: what all rows of the request have.
        vectors: of what is shared, what blocks before read; filled.
        signature: what the model takes.
        limits: how much of it.

    Returns:
        Its columns, and the names that its rows give themselves.

    Raises:
        InvalidRequest: an unknown or missing feature, or a value of the wrong type.
        RequestTooLarge: more ids than the limits allow.
    """
    given = frozenset(chain.from_iterable(rows))
    arrays: dict[str, npt.NDArray[Any]] = {}
    shared_features: dict[str, Mask] = {}
    known: set[str] = set()
    twice: set[str] = set()
    for entry in signature.inputs:
        features = entry.features or (entry.name,)
        if entry.type == "embedding":
            arrays[entry.name] = _embedding(entry, rows, shared, vectors, given)
        elif entry.type != "dense":
            arrays.update(_sparse(entry, rows, shared, given, limits))
            shared_features[entry.name] = np.array(
                [name not in given for name in features], np.bool_
            )
        elif not entry.features or _is_whole(entry, given, shared):
            features = (entry.name,)
            arrays[entry.name] = _vectors(entry.name, rows, shared, vectors, given)
        else:
            arrays[entry.name] = _numbers(entry, rows, shared)
        twice |= known.intersection(features)
        known.update(features)
    for name in twice & (given | shared.keys()):
        owners = [entry.name for entry in signature.inputs if name in entry.features]
        raise InvalidRequest(
            said=f"a feature of {' and of '.join(owners)}, which rows cannot tell apart",
            where=shortened(name),
            hint="send columns",
        )
    if unknown := sorted((given | shared.keys()) - known):
        raise InvalidRequest(
            said="unknown feature",
            where=shortened(unknown[0]) or '""',
            expected=", ".join(sorted(known)),
        )
    return Columns(arrays=arrays, shared=shared_features, batch_size=len(rows)), given


def _is_whole(entry: InputSignature, given: Container[str], shared: Row) -> bool:
    is_feature = entry.name in entry.features
    return not is_feature and (entry.name in given or entry.name in shared)


def _numbers(entry: InputSignature, rows: Rows, shared: Row) -> npt.NDArray[Any]:
    """Features of one number a row, [B, F]; NaN where one that has a default is missing."""
    block = np.empty((len(rows), len(entry.features)))
    for feature, name in enumerate(entry.features):
        kinds = NUMBERS
        if entry.defaults and entry.defaults[feature] is not None:
            kinds = NUMBERS_OR_NULL
            column = list(map(methodcaller("get", name, shared.get(name)), rows))
        else:
            column = _column(name, rows, shared)
        if not set(map(type, column)) <= kinds:
            position = next(i for i, value in enumerate(column) if type(value) not in kinds)
            where = _where(name, position, rows)
            raise InvalidRequest(where=where, received=shown(column[position]), expected="a number")
        block[:, feature] = np.array(column, dtype=np.float64)
    return block


def _vectors(
    name: str,
    rows: Rows,
    shared: Row,
    vectors: Vectors,
    given: Container[str],
) -> npt.NDArray[Any]:
    """A feature of D numbers a row, [B, D]; [1, D] where every row has the shared ones.

    Args:
        name: the feature.
        rows: some of a request's.
        shared: what all of them have.
        vectors: of what is shared, what was read before.
        given: names that these rows have themselves.
    """
    is_shared = name in shared and name not in given
    if is_shared and name in vectors:
        return vectors[name]
    column = [shared[name]] if is_shared else _column(name, rows, shared)
    if set(map(type, column)) != {list} or len(set(map(len, column))) != 1:
        width = len(column[0]) if type(column[0]) is list else 0
        position = next(i for i, v in enumerate(column) if type(v) is not list or len(v) != width)
        raise InvalidRequest(
            where=_where(name, position, rows),
            received=shown(column[position]),
            expected="a list of numbers, as many as in every row",
        )
    if name in shared and not is_shared:
        repeated = sum(value is shared[name] for value in column)
        check_repeated(name, (repeated - 1) * len(column[0]))
    flat = list(chain.from_iterable(column))
    if not set(map(type, flat)) <= NUMBERS:
        position = next(i for i, value in enumerate(flat) if type(value) not in NUMBERS)
        row, inner = divmod(position, len(column[0]))
        where = f"{_where(name, row, rows)}[{inner}]"
        raise InvalidRequest(where=where, received=shown(flat[position]), expected="a number")
    block = np.array(flat, dtype=np.float64).reshape(len(column), -1)
    if is_shared:
        vectors[name] = block
    return block


def _embedding(
    entry: InputSignature, rows: Rows, shared: Row, vectors: Vectors, given: Container[str]
) -> npt.NDArray[Any]:
    """Features of D numbers a row each, [F, B, D]; [F, 1, D] where all of them are shared."""
    names = entry.features or (entry.name,)
    blocks = [_vectors(name, rows, shared, vectors, given) for name in names]
    width = blocks[0].shape[1]
    for name, block in zip(names, blocks, strict=True):
        if block.shape[1] != width:
            raise InvalidRequest(
                where=name,
                received=f"{block.shape[1]} numbers a row",
                expected=f"{width}, as many as {names[0]} has",
            )
    shape = (max(map(len, blocks)), width)
    return np.stack([np.broadcast_to(block, shape) for block in blocks])


def _sparse(
    entry: InputSignature,
    rows: Rows,
    shared: Row,
    given: Container[str],
    limits: Limits,
) -> dict[str, npt.NDArray[Any]]:
    """Features of a list of ids a row each: lengths [F * B], values [N] and weights [N]."""
    if not entry.features:
        raise InvalidRequest(
            said=f"this model hides its feature names, so {INSTANCES} cannot be read",
            where=entry.name,
            hint="send columns, or name them in PredictFactory.model_inputs_data",
        )
    lengths, flat = _gather(entry, rows, shared, given, limits)
    arrays: dict[str, npt.NDArray[Any]] = {f"{entry.name}.lengths": lengths.reshape(-1)}
    faults = _faults(entry, rows, shared)
    if entry.type == "weighted_sparse":
        if not (set(map(type, flat)) <= {list} and set(map(len, flat)) <= {2}):
            raise next(faults)
        weights = list(map(itemgetter(1), flat))
        if not set(map(type, weights)) <= NUMBERS:
            raise next(faults)
        arrays[f"{entry.name}.weights"] = np.array(weights, dtype=np.float64)
        flat = list(map(itemgetter(0), flat))
    kinds = set(map(type, flat))
    if kinds <= {int}:
        try:
            arrays[f"{entry.name}.values"] = np.array(flat, dtype=np.int64)
        except OverflowError:
            pass
        else:
            return arrays
    if not (entry.hashed and kinds <= RAW and _are_good(entry, flat, lengths)):
        raise next(faults)
    arrays[f"{entry.name}.values"] = to_ids(flat)
    return arrays


def _are_good(entry: InputSignature, flat: Sequence[Any], lengths: npt.NDArray[np.int64]) -> bool:
    """Whether the ids of all features but hashed ones, [N] in all, are of int64."""
    ends = lengths.sum(axis=1).cumsum().tolist()
    return all(
        hashed is not None or all(map(_is_id, flat[start:end]))
        for hashed, start, end in zip(entry.hashed, [0, *ends], ends, strict=False)
    )


def _gather(
    entry: InputSignature,
    rows: Rows,
    shared: Row,
    given: Container[str],
    limits: Limits,
) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Lengths [F, B], and all elements of the rows' lists, feature by feature.

    What no instance gives is the same in all of them; it is read once, as the first one's.
    """
    lengths = np.zeros((len(entry.features), len(rows)), np.int64)
    flat: list[Any] = []
    total = 0
    for name, counts in zip(entry.features, lengths, strict=True):
        own = rows if name in given else rows[:1]
        column = list(map(methodcaller("get", name, shared.get(name, ())), own))
        kinds = set(map(type, column))
        ids: Iterable[Any] = column
        if kinds == {int}:
            counts[: len(own)] = 1
            count = len(own)
        else:
            if int in kinds:
                column = [[value] if type(value) is int else value for value in column]
            if str in kinds and entry.hashed and entry.hashed[entry.features.index(name)]:
                column = [[value] if type(value) is str else value for value in column]
            if not set(map(type, column)) <= {list, tuple}:
                raise next(_faults(entry, rows, shared))
            ids = chain.from_iterable(column)
            lists = list(map(len, column))
            count = sum(lists)
            # numpy takes longer for one number than for all else here.
            if len(own) == 1:
                counts[0] = count
            else:
                counts[: len(own)] = np.fromiter(lists, np.int64, len(own))
        total += count * (len(rows) // len(own))
        if total > limits.ids_per_request:
            check_ids(entry.name, total, limits)
        flat.extend(ids)
    return lengths, flat


def _column(name: str, rows: Rows, shared: Row) -> list[Any]:
    if name in shared:
        return list(map(methodcaller("get", name, shared[name]), rows))
    try:
        return list(map(itemgetter(name), rows))
    except KeyError:
        position = next(i for i, row in enumerate(rows) if name not in row)
        raise InvalidRequest(
            said="missing",
            where=f"{INSTANCES}[{rows.first + position}].{name}",
            expected="in every row",
        ) from None


def _faults(entry: InputSignature, rows: Rows, shared: Row) -> Iterator[InvalidRequest]:
    """Where a sparse input's rows hold something else than ids."""
    weighted = entry.type == "weighted_sparse"
    for feature, name in enumerate(entry.features):
        is_hashed = bool(entry.hashed and entry.hashed[feature])
        is_id = _is_raw_id if is_hashed else _is_id
        is_good: Callable[[Any], bool] = is_id
        one, many = (
            ("a string or a 64-bit integer", "a list of ids (strings or 64-bit integers), or one")
            if is_hashed
            else ("a signed 64-bit integer", "a list of ids (signed 64-bit integers), or one")
        )
        id_ = one
        if weighted:
            is_good = partial(_is_pair, is_id)
            one, many = "a pair [id, weight]", "a list of [id, weight] pairs"
        for position, row in enumerate(rows):
            value = row.get(name, shared.get(name, []))
            where = _where(name, position, rows)
            if isinstance(value, list):
                for inner, part in enumerate(value):
                    if is_good(part):
                        continue
                    place = f"{where}[{inner}]"
                    if weighted and type(part) is list and len(part) == 2:
                        at = int(is_id(part[0]))
                        place, wrong, expected = f"{place}[{at}]", part[at], (id_, "a number")[at]
                    else:
                        wrong, expected = part, one
                    yield InvalidRequest(where=place, received=shown(wrong), expected=expected)
            elif weighted or not is_good(value):
                yield InvalidRequest(where=where, received=shown(value), expected=many)


def _is_id(value: Any) -> bool:
    return type(value) is int and value < 2**63


def _is_raw_id(value: Any) -> bool:
    return type(value) in RAW


def _is_pair(is_id: Callable[[Any], bool], value: Any) -> bool:
    return type(value) is list and len(value) == 2 and is_id(value[0]) and type(value[1]) in NUMBERS


def check_ids(name: str, ids: int, limits: Limits) -> None:
    """See that an input has no more ids than a request may have.

    Raises:
        RequestTooLarge: it has.
    """
    if ids > limits.ids_per_request:
        raise RequestTooLarge(
            received=f"more than {limits.ids_per_request} ids (limits.ids_per_request)",
            where=name,
        )


def _where(name: str, position: int, rows: Rows) -> str:
    own = f"{INSTANCES}[{rows.first + position}].{name}"
    return own if name in rows[position] else f"{SHARED}.{name}"
