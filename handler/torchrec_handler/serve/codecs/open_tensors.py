"""Tensors of Open Inference Protocol: a name, a shape, a datatype and data."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simdjson
import torch

from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_arrays import MOST_AXES, check_size, read_array
from torchrec_handler.serve.codecs.json_document import names, shown
from torchrec_handler.serve.codecs.json_raw import RawIds

PARAMETERS = "parameters"

INTEGERS: Mapping[str, tuple[int, int]] = {
    name: (int(np.iinfo(name.lower()).min), int(np.iinfo(name.lower()).max))
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
}
FLOATS: Mapping[str, tuple[float, float]] = {
    name: (-largest, largest)
    for name, largest in (
        ("FP16", float(np.finfo("float16").max)),
        ("FP32", float(np.finfo("float32").max)),
        ("FP64", float(np.finfo("float64").max)),
        ("BF16", float(torch.finfo(torch.bfloat16).max)),
    )
}
DATATYPES = {**INTEGERS, **FLOATS}
"""The protocol's names of what may be sent -> its smallest and largest number."""
TEXT = "BYTES"
"""The protocol's name of strings, which integers may stand beside: features share a tensor."""

MOST_NAMES = 64
"""Of a tensor and of what is beside `inputs`: the protocol knows four, and clients add some."""

Read = tuple[str, Any, Column, Sequence[int]]
"""An array's place, itself, what it is, and the shape that its lists have."""


class Found(NamedTuple):
    """The data of a body's tensors."""

    arrays: list[Read]
    raw: list[RawIds]
    """Of these, ids that only a hashed feature may have."""


BINARY = "binary_data"
"""How the parameters of the protocol's binary extension begin."""


def check_parameters(where: str, value: Any) -> None:
    """Read past parameters, unless they say that data is, or is to be, outside the JSON.

    Raises:
        InvalidRequest: they say so, or are no object.
    """
    if not isinstance(value, simdjson.Object):
        raise InvalidRequest(where=where, received=shown(value), expected="an object")
    for name in names(where, value, MOST_NAMES):
        if name.startswith(BINARY) and value[name]:
            raise InvalidRequest(
                said="the protocol's binary extension is not served",
                where=f"{where}.{name}",
                hint="send and ask for data as JSON, or use protobuf",
            )


def read_tensor(
    where: str,
    tensor: simdjson.Object,
    keys: Sequence[str],
    column: Column,
    found: Found,
) -> npt.NDArray[Any]:
    """Read a tensor's data, in its shape.

    Args:
        where: its place in the body, for messages.
        tensor: all of it.
        keys: its names.
        column: what it may hold.
        found: gets the array that its data is.

    Raises:
        InvalidRequest: not the protocol's form, or shape, datatype and data disagree.
        RequestTooLarge: it is longer than the limits allow.
    """
    datatype = get(where, tensor, "datatype", keys)
    known: Collection[str] = INTEGERS if column.is_integer else DATATYPES
    if column.hashed:
        known = (*INTEGERS, TEXT)
    if not isinstance(datatype, str) or datatype not in known:
        raise InvalidRequest(
            where=f"{where}.datatype", received=shown(datatype), expected=", ".join(known)
        )
    if PARAMETERS in keys:
        check_parameters(f"{where}.{PARAMETERS}", tensor[PARAMETERS])
    shape = _shape(where, get(where, tensor, "shape", keys))
    check_size(where, math.prod(shape), column)
    # The data may be nested or flat, and flat it is as long as the whole tensor.
    value = get(where, tensor, "data", keys)
    place = f"{where}.data"
    before = len(found.raw)
    data = read_array(place, value, column, found.raw)
    found.arrays.append((place, value, column, data.shape))
    if data.shape not in (shape, (math.prod(shape),)):
        received = " x ".join(map(str, data.shape))
        expected = " x ".join(map(str, shape))
        raise InvalidRequest(
            where=place, received=f"{received} elements", expected=f"{expected} (its shape)"
        )
    if datatype != TEXT and len(found.raw) > before:
        _refuse_texts(found.raw[-1], datatype)
    if datatype != TEXT and not (column.hashed and datatype == "UINT64"):
        # What is missing is in every range.
        given = np.where(np.isnan(data), 0, data) if column.defaults else data
        _check_range(place, given, datatype)
    # numpy refuses large sizes beside a 0.
    return data.reshape(shape) if data.size else data


def _check_range(where: str, data: npt.NDArray[Any], datatype: str) -> None:
    """Refuse what the datatype that a tensor claims cannot hold."""
    if datatype == "INT64" and data.dtype == np.int64:
        return
    smallest, largest = DATATYPES[datatype]
    is_whole = datatype in INTEGERS
    if not data.size or (
        smallest <= data.min() and data.max() <= largest and not (is_whole and _has_parts(data))
    ):
        return
    bad = (data < smallest) | (data > largest)
    if is_whole:
        bad |= data != np.rint(data)
    position = np.unravel_index(int(bad.argmax()), data.shape)
    index = "".join(f"[{part}]" for part in position)
    what = f"integers from {smallest} to {largest}" if is_whole else f"up to {largest:g}"
    raise InvalidRequest(
        where=f"{where}{index}", received=str(data[position]), expected=f"{datatype} ({what})"
    )


def _refuse_texts(raw: RawIds, datatype: str) -> None:
    if raw.is_text.any():
        position = int(raw.is_text.argmax())
        raise InvalidRequest(
            where=f"{raw.where}[{position}]",
            received=shown(raw.array[position]),
            expected=f"{datatype} (strings are {TEXT})",
        )


def _has_parts(data: npt.NDArray[Any]) -> bool:
    return data.dtype.kind == "f" and bool((data != np.rint(data)).any())


def _shape(where: str, value: Any) -> tuple[int, ...]:
    is_short = isinstance(value, simdjson.Array) and len(value) <= MOST_AXES
    sizes: list[Any] = list(value) if is_short else []
    if not sizes or not all(type(size) is int and size >= 0 for size in sizes):
        raise InvalidRequest(
            where=f"{where}.shape",
            received=shown(value),
            expected=f"a list of 1 to {MOST_AXES} sizes",
        )
    return tuple(sizes)


def get(where: str, tensor: simdjson.Object, key: str, keys: Sequence[str]) -> Any:
    """A tensor's value of a name that it must have.

    Raises:
        InvalidRequest: it is not among its names.
    """
    if key not in keys:
        raise InvalidRequest(
            said="missing", where=f"{where}.{key}", expected="name, shape, datatype and data"
        )
    return tensor[key]
