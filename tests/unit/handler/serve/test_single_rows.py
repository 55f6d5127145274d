"""Single rows checked together pass as they do alone, or not at all."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import DENSE, EMBEDDING, SPARSE, WEIGHTED, examples
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import RequestError
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.request import Columns, Sparse, ValidRequest
from torchrec_handler.serve.single_rows import SingleRows
from torchrec_handler.serve.validate import Validator

INPUTS = (DENSE, SPARSE, WEIGHTED)
LIMIT = 12
"""Of the ids of a request."""
LEAST_ROWS = 10
"""Of all tables."""


def signature(*inputs: InputSignature) -> Signature:
    return Signature(inputs=inputs, methods={"forward": True}, result_metadata="dict_of_tensor")


OPTIONS = Options(limits=Limits(ids_per_request=LIMIT))
ALONE = Validator(signature(*INPUTS), OPTIONS)
TOGETHER = SingleRows(signature(*INPUTS), OPTIONS)


def columns(**changed: Any) -> Columns:
    """A good request of one row; `__` in a name stands for a dot."""
    arrays: dict[str, Any] = {DENSE.name: [0.5] * (DENSE.num_features or 0)}
    for entry in (SPARSE, WEIGHTED):
        lengths = [1] * (entry.num_features or 0)
        arrays[f"{entry.name}.lengths"] = lengths
        arrays[f"{entry.name}.values"] = [0] * len(lengths)
    arrays[f"{WEIGHTED.name}.weights"] = [0.25] * (WEIGHTED.num_features or 0)
    arrays.update({name.replace("__", "."): value for name, value in changed.items()})
    return Columns(arrays={name: np.array(value) for name, value in arrays.items()})


def arrays_of(request: ValidRequest) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, value in request.inputs.items():
        if isinstance(value, Sparse):
            for field in dataclasses.fields(value):
                found[f"{name}.{field.name}"] = getattr(value, field.name)
        else:
            found[name] = value
    return found


def assert_alike(received: ValidRequest, expected: ValidRequest) -> None:
    assert received.rows == expected.rows == 1
    mine, others = arrays_of(received), arrays_of(expected)
    assert mine.keys() == others.keys()
    for name, array in mine.items():
        if array is None:
            assert others[name] is None
            continue
        assert array.dtype == others[name].dtype
        assert array.shape == others[name].shape
        np.testing.assert_array_equal(array, others[name])


def alone(request: Columns) -> ValidRequest | RequestError:
    try:
        return ALONE(request)
    except RequestError as error:
        return error


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
good_numbers = st.floats(-1e30, 1e30)


@st.composite
def requests(draw: st.DrawFn) -> Columns:
    """Mostly good ones, whose sizes, ids and numbers may each be off."""
    is_good = draw(st.booleans())
    floats = good_numbers if is_good else numbers
    arrays: dict[str, Any] = {}
    size = DENSE.num_features or 0
    arrays[DENSE.name] = np.array(draw(st.lists(floats, min_size=size, max_size=size)))
    if draw(st.booleans()):
        arrays[DENSE.name] = arrays[DENSE.name].reshape(1, -1)
    for entry in (SPARSE, WEIGHTED):
        features = entry.num_features or 0
        least = 0 if is_good else -1
        lengths = draw(st.lists(st.integers(least, 3), min_size=features, max_size=features))
        count = max(0, sum(lengths) + (0 if is_good else draw(st.integers(-1, 1))))
        most = LEAST_ROWS - 1 if is_good else 2**40
        values = draw(st.lists(st.integers(least, most), min_size=count, max_size=count))
        kind = draw(st.sampled_from([np.int32, np.int64])) if is_good else np.int64
        arrays[f"{entry.name}.lengths"] = np.array(lengths, kind)
        arrays[f"{entry.name}.values"] = np.array(values, kind)
        if entry is WEIGHTED:
            weights = draw(st.lists(floats, min_size=count, max_size=count))
            arrays[f"{entry.name}.weights"] = np.array(weights, np.float64)
        if draw(st.booleans()):
            arrays[f"{entry.name}.lengths"] = arrays[f"{entry.name}.lengths"].reshape(-1, 1)
    return Columns(arrays=arrays, batch_size=draw(st.sampled_from([None, 1])))


@examples()
@given(st.lists(requests(), min_size=1, max_size=6))
def test_requests_pass_together_exactly_when_each_passes_alone(batch: list[Columns]) -> None:
    assert None not in map(TOGETHER.takes, batch)
    expected = [alone(request) for request in batch]
    received = TOGETHER.check(batch)
    if any(isinstance(one, RequestError) for one in expected):
        assert received is None
        return
    assert received is not None
    for mine, other in zip(received, expected, strict=True):
        assert isinstance(other, ValidRequest)
        assert_alike(mine, other)


@pytest.mark.parametrize(
    "changed",
    [
        {f"{SPARSE.name}__values": [-1] * (SPARSE.num_features or 0)},
        {f"{SPARSE.name}__values": [50] * (SPARSE.num_features or 0)},
        {f"{SPARSE.name}__values": np.zeros(SPARSE.num_features or 0, np.uint64)},
        {f"{SPARSE.name}__lengths": [2**62] * (SPARSE.num_features or 0)},
        {f"{SPARSE.name}__values": [0]},
        {f"{WEIGHTED.name}__weights": [0.5]},
        {f"{WEIGHTED.name}__weights": [np.nan] * (WEIGHTED.num_features or 0)},
        {DENSE.name: [1e39] * (DENSE.num_features or 0)},
    ],
)
def test_what_may_be_refused_or_changed_is_left_to_be_checked_alone(
    changed: Mapping[str, Any],
) -> None:
    good = columns()
    assert TOGETHER.check([good, good]) is not None
    off = columns(**changed)
    assert TOGETHER.takes(off) is not None
    assert TOGETHER.check([good, off]) is None


def test_too_many_ids_over_all_inputs_are_left_to_be_checked_alone() -> None:
    ids = [LIMIT] + [0] * ((SPARSE.num_features or 0) - 1)
    many = columns(
        **{f"{SPARSE.name}__lengths": ids, f"{SPARSE.name}__values": [0] * LIMIT},
    )
    assert TOGETHER.check([many]) is None


def test_the_ids_of_a_row_are_counted() -> None:
    """Without their weights."""
    found = TOGETHER.takes(columns())
    assert found == (SPARSE.num_features or 0) + (WEIGHTED.num_features or 0)


@pytest.mark.parametrize(
    "request_",
    [
        columns(**{DENSE.name: np.zeros((2, DENSE.num_features or 0))}),
        columns(**{DENSE.name: np.zeros((DENSE.num_features or 0, 1))}),
        columns(**{f"{SPARSE.name}__lengths": np.zeros((1, SPARSE.num_features or 0), int)}),
        columns(**{f"{SPARSE.name}__values": [[0]]}),
        dataclasses.replace(columns(), batch_size=2),
        dataclasses.replace(columns(), shared={SPARSE.name: np.array([True])}),
        Columns(arrays={DENSE.name: np.zeros(DENSE.num_features or 0)}),
    ],
)
def test_requests_of_another_form_are_not_taken(request_: Columns) -> None:
    assert TOGETHER.takes(request_) is None


@pytest.mark.parametrize(
    "inputs",
    [(DENSE, EMBEDDING), (dataclasses.replace(DENSE, num_features=None), SPARSE)],
)
def test_models_whose_rows_the_sizes_do_not_tell_are_not_taken(
    inputs: tuple[InputSignature, ...],
) -> None:
    assert SingleRows(signature(*inputs), OPTIONS).takes(columns()) is None
