"""JSON rows: one object a row, features by name, and what holds for every row once.

{"instances": [{"age": 31, "genres": [3, 17]}, ...B rows...], "shared": {"user_id": 7}}

A sparse feature is a list of ids or one id; a weighted one a list of [id, weight] pairs; a dense
one a number; an embedding one a list of D numbers. A dense input whose features have no names is
given whole, as a list under the input's own name. An instance's value goes before a shared one.
"""

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter, methodcaller
from typing import Any

import numpy as np
import numpy.typing as npt
import simdjson

from torchrec_handler.archive import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs.json_document import shown
from torchrec_handler.serve.request import Columns

INSTANCES = "instances"
SHARED = "shared"

Row = dict[str, Any]


def decode(document: simdjson.Object, signature: Signature, limits: Limits) -> Columns:
    """Read a body.

    Raises:
        InvalidRequest: not rows, an unknown or missing feature, or a value of the wrong type.
        RequestTooLarge: more rows than the limits allow.
    """
    instances, shared = _rows(document, limits)
    arrays: dict[str, npt.NDArray[Any]] = {}
    known: set[str] = set()
    for entry in signature.inputs:
        names = entry.features or (entry.name,)
        if entry.type in ("sparse", "weighted_sparse") and not entry.features:
            message = (
                f"{entry.name}: this model hides its feature names, so {INSTANCES} cannot be read; "
                "send columns, or name them in PredictFactory.model_inputs_data"
            )
            raise InvalidRequest(message)
        if entry.features and entry.type == "dense" and _gives_whole(entry, instances, shared):
            names = (entry.name,)
        known.update(names)
        if entry.type == "dense":
            arrays[entry.name] = _dense(entry, names, instances, shared)
        elif entry.type == "embedding":
            arrays[entry.name] = np.array(
                [_vectors(name, _column(name, instances, shared)) for name in names]
            )
        else:
            arrays.update(_sparse(entry, instances, shared))
    given = set(chain.from_iterable(instances)) | shared.keys()
    if unknown := sorted(given - known):
        message = f"{unknown[0]}: unknown feature, expected {', '.join(sorted(known))}"
        raise InvalidRequest(message)
    return Columns(arrays=arrays, batch_size=len(instances))


def _rows(document: simdjson.Object, limits: Limits) -> tuple[list[Row], Row]:
    for name in document:
        if name not in (INSTANCES, SHARED):
            message = f"{name}: unknown key, expected {INSTANCES} or {SHARED}"
            raise InvalidRequest(message)
    array = document[INSTANCES]
    if not isinstance(array, simdjson.Array) or len(array) == 0:
        received = "an empty array" if isinstance(array, simdjson.Array) else shown(array)
        message = f"{INSTANCES}: received {received}, expected an array of objects, one a row"
        raise InvalidRequest(message)
    if len(array) > limits.rows_per_request:
        message = (
            f"{INSTANCES}: received {len(array)} rows, expected at most {limits.rows_per_request} "
            "(limits.rows_per_request)"
        )
        raise RequestTooLarge(message)
    instances: list[Any] = array.as_list()
    if set(map(type, instances)) != {dict}:
        position = next(i for i, row in enumerate(instances) if type(row) is not dict)
        message = (
            f"{INSTANCES}[{position}]: received {shown(instances[position])}, expected an object"
        )
        raise InvalidRequest(message)
    shared = document.get(SHARED)
    if SHARED not in document:
        return instances, {}
    if not isinstance(shared, simdjson.Object):
        message = f"{SHARED}: received {shown(shared)}, expected an object"
        raise InvalidRequest(message)
    return instances, shared.as_dict()


def _gives_whole(entry: InputSignature, instances: Sequence[Row], shared: Row) -> bool:
    return entry.name in instances[0] or entry.name in shared


def _dense(
    entry: InputSignature, names: Sequence[str], instances: Sequence[Row], shared: Row
) -> npt.NDArray[np.float64]:
    if names == (entry.name,):
        return _vectors(entry.name, _column(entry.name, instances, shared))
    block = np.empty((len(instances), len(names)))
    for position, name in enumerate(names):
        block[:, position] = _numbers(name, _column(name, instances, shared))
    return block


def _sparse(
    entry: InputSignature, instances: Sequence[Row], shared: Row
) -> dict[str, npt.NDArray[Any]]:
    lengths: list[npt.NDArray[np.int64]] = []
    values: list[Any] = []
    for name in entry.features:
        column = list(map(methodcaller("get", name, shared.get(name, ())), instances))
        kinds = set(map(type, column))
        if int in kinds:
            column = [[value] if type(value) is int else value for value in column]
            kinds = set(map(type, column))
        if not kinds <= {list, tuple}:
            position = next(i for i, v in enumerate(column) if type(v) not in (list, tuple))
            message = _fault(position, name, column[position], _expected(entry))
            raise InvalidRequest(message)
        lengths.append(np.fromiter(map(len, column), np.int64, len(column)))
        values.append(column)
    flat = list(chain.from_iterable(chain.from_iterable(values)))
    arrays = {f"{entry.name}.lengths": np.concatenate(lengths)}
    if entry.type == "weighted_sparse":
        if not set(map(type, flat)) <= {list} or not set(map(len, flat)) <= {2}:
            _raise_first(entry, values, lambda pair: type(pair) is list and len(pair) == 2)
        weights = list(map(itemgetter(1), flat))
        if not set(map(type, weights)) <= {int, float}:
            _raise_first(entry, values, lambda pair: type(pair[1]) in (int, float))
        arrays[f"{entry.name}.weights"] = np.array(weights, dtype=np.float64)
        flat = list(map(itemgetter(0), flat))
        if not set(map(type, flat)) <= {int}:
            _raise_first(entry, values, lambda pair: type(pair[0]) is int)
    elif not set(map(type, flat)) <= {int}:
        _raise_first(entry, values, lambda value: type(value) is int)
    try:
        arrays[f"{entry.name}.values"] = np.array(flat, dtype=np.int64)
    except OverflowError:
        message = f"{entry.name}: an id does not fit 64 bits"
        raise InvalidRequest(message) from None
    return arrays


def _column(name: str, instances: Sequence[Row], shared: Row) -> list[Any]:
    if name in shared:
        return list(map(methodcaller("get", name, shared[name]), instances))
    try:
        return list(map(itemgetter(name), instances))
    except KeyError:
        position = next(i for i, row in enumerate(instances) if name not in row)
        message = f"{INSTANCES}[{position}].{name}: missing, expected a dense feature in every row"
        raise InvalidRequest(message) from None


def _numbers(name: str, column: Sequence[Any]) -> npt.NDArray[np.float64]:
    if not set(map(type, column)) <= {int, float}:
        position = next(i for i, value in enumerate(column) if type(value) not in (int, float))
        raise InvalidRequest(_fault(position, name, column[position], "a number"))
    return np.array(column, dtype=np.float64)


def _vectors(name: str, column: Sequence[Any]) -> npt.NDArray[np.float64]:
    if set(map(type, column)) != {list} or len(set(map(len, column))) != 1:
        width = len(column[0]) if type(column[0]) is list else None
        position = next(
            (i for i, v in enumerate(column) if type(v) is not list or len(v) != width), 0
        )
        raise InvalidRequest(
            _fault(position, name, column[position], "a list of numbers as long as in every row")
        )
    flat = list(chain.from_iterable(column))
    if not set(map(type, flat)) <= {int, float}:
        position = next(i for i, value in enumerate(flat) if type(value) not in (int, float))
        row, inner = divmod(position, len(column[0]))
        raise InvalidRequest(_fault(row, f"{name}[{inner}]", flat[position], "a number"))
    return np.array(flat, dtype=np.float64).reshape(len(column), -1)


def _expected(entry: InputSignature) -> str:
    if entry.type == "weighted_sparse":
        return "a list of [id, weight] pairs"
    return "a list of integer ids, or one"


def _raise_first(entry: InputSignature, values: Sequence[Any], is_good: Any) -> None:
    for name, column in zip(entry.features, values, strict=True):
        for position, row in enumerate(column):
            for value in row:
                if not is_good(value):
                    raise InvalidRequest(_fault(position, name, value, _expected(entry)))


def _fault(position: int, name: str, value: Any, expected: str) -> str:
    return f"{INSTANCES}[{position}].{name}: received {shown(value)}, expected {expected}"
