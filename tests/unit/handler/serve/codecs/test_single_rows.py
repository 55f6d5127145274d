"""Requests of one row each are as one request of as many rows what they are alone."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered import ask
from tests.support.exact import CPU, INPUTS, SPARSE, Exact, batching, examples, predictor
from tests.support.one_request import JSON, signature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.batch import combine
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.codecs.single_rows import single_rows
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.observe import Totals
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.serve.validate import Validator

GOOD = {
    "float_features": [[3, 4.5, 5]],
    "id_list_features.lengths": [1, 0, 2],
    "id_list_features.values": [1, 2, 3],
    "id_score_list_features.lengths": [[1], [1]],
    "id_score_list_features.values": [4, 5],
    "id_score_list_features.weights": [0.5, 2],
    "embedding_features": [[[1, 2, 3, 4]], [[5, 6, 7, 8]]],
}
ROW = {
    "age": 3,
    "price": 4.5,
    "hour": 5,
    "user": 1,
    "movie": [2],
    "genres": [3, 4],
    "tags": [[4, 0.5]],
    "clicks": [[5, 2]],
    "image": [1, 2, 3, 4],
    "title": [5, 6, 7, 8],
}
CHANGES: list[dict[str, Any]] = [
    {"float_features": [[9, 0, 0]]},  # which the model refuses
    {"float_features": [[1e39, 0, 0]]},
    {"float_features": [[1, 2]]},
    {"float_features": [[1, 2, 3], [1, 2, 3]]},
    {"float_features": [1, 2, 3]},
    {"id_list_features.lengths": [1, 1, 1]},
    {"id_list_features.lengths": [0, 0, 0], "id_list_features.values": []},
    {"id_list_features.lengths": [2, 0, 2]},
    {"id_list_features.lengths": [2, 0, 0]},
    {"id_list_features.lengths": [1, -1, 3]},
    {"id_list_features.lengths": [1, 2]},
    {"id_list_features.lengths": [2**62, 2**62, 3]},
    {"id_list_features.lengths": [1, 0, 0, 0, 1, 1]},
    {"id_list_features.values": [50, 2, 10]},
    {"id_list_features.values": [1, 2, -1]},
    {"id_score_list_features.weights": [1]},
    {"id_score_list_features.lengths": [1, 1]},
    {"embedding_features": [[[1, 2, 3]], [[5, 6, 7]]]},
    {"embedding_features": [[[1, 2, 3, 4]] * 2] * 2},
    {"age": 9},
    {"age": 1e39},
    {"user": 50},
    {"user": [1, 2]},
    {"genres": [10]},
    {"movie": []},
    {"title": [1, 2]},
    {"clicks": [[20, 1]]},
]


class Particular(Exact):
    """Refuses rows whose first number is 9, and writes to what it is given."""

    def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
        found = super().scores(batch)
        is_bad = (batch["float_features"][:, 0] == 9).any()
        for tensor in (batch["float_features"], batch["id_list_features.values"]):
            tensor.zero_()
        if is_bad:
            message = "not 9"
            raise ValueError(message)
        return found


def engine(result_metadata: str = "dict_of_tensor", /, **options: Any) -> tuple[Engine, Totals]:
    methods = {"forward": True, "negative": True}
    totals = Totals()
    served = predictor(
        Particular(INPUTS, result_metadata),
        *INPUTS,
        result_metadata=result_metadata,
        methods=methods,
    )
    return Engine("ranking", served, Options(**options), totals), totals


def as_raw(document: Any, accept: str = "", qualname: str = "forward") -> RawRequest:
    body = json.dumps(document).encode()
    return RawRequest(body=body, content_type=JSON, accept=accept, qualname=qualname)


@st.composite
def requests(draw: st.DrawFn) -> list[RawRequest]:
    """Most of them good, and most of the others alike but for their numbers."""
    found = []
    accept = draw(st.sampled_from(["", "application/x-protobuf"]))
    for at in range(draw(st.integers(2, 12))):
        change = draw(st.none() | st.none() | st.sampled_from(CHANGES)) or {}
        is_row = not GOOD.keys() >= change.keys() if change else draw(st.booleans())
        document: Any = {"instances": [{**ROW, "hour": at, **change}]}
        if not is_row:
            document = {**GOOD, "float_features": [[at, at + 0.5, 1]], **change}
        qualname = draw(st.sampled_from(["forward", "forward", "negative"]))
        found.append(as_raw(document, accept, qualname))
    return found


@pytest.mark.parametrize("result_metadata", ["dict_of_tensor", "dict_of_tensors"])
@examples(0.5)
@given(
    given=requests(),
    most=st.integers(1, 8),
    policy=st.sampled_from(["reject", "zero", "modulo"]),
    batch=st.sampled_from([5, 1_000]),
)
def test_answers_and_counts(
    result_metadata: str, given: list[RawRequest], most: int, policy: Any, batch: int
) -> None:
    limits = Limits(rows_per_forward=most, rows_per_batch=batch, seconds_of_reading=60.0)
    together, counted = engine(result_metadata, limits=limits, out_of_range_ids=policy)
    alone, expected = engine(result_metadata, out_of_range_ids=policy)
    answers = ask(together, given)
    assert counted.requests == len(given)
    if any(answer.status == 503 for answer in answers):
        assert batch == 5
        given = [raw for raw, answer in zip(given, answers, strict=True) if answer.status != 503]
        answers = [answer for answer in answers if answer.status != 503]
        del counted.errors["Overloaded"]
    assert answers == [ask(alone, [raw])[0] for raw in given]
    assert (counted.rows, counted.errors) == (expected.rows, expected.errors)
    assert together.out_of_range_ids() == alone.out_of_range_ids()


@pytest.mark.parametrize(
    "documents",
    [
        [GOOD] * 3,
        [GOOD, {**GOOD, "id_list_features.lengths": [0, 3, 0], "float_features": [[1, 1, 1]]}],
        [
            {**GOOD, "id_list_features.lengths": [1, 1, 1], "id_list_features.values": [at, 2, 3]}
            for at in range(3)
        ],
        [{**GOOD, "float_features": [1, 2, at]} for at in range(3)],
        [{"instances": [{**ROW, "movie": [at] * at}]} for at in range(3)],
        [{"instances": [{name: ROW[name] for name in ROW if name != "user"}]}] * 2,
    ],
    ids=["alike", "ragged", "an id each", "flat", "rows", "rows without a feature"],
)
def test_the_model_gets_what_it_gets_of_them_alone(documents: list[Any]) -> None:
    known = signature(*INPUTS)
    codecs, validator = Codecs("ranking", known, Limits()), Validator(known, Options())
    raws = list(map(as_raw, documents))
    columns = codecs.decode_together(raws).rows()
    whole = validator.check_rows(columns, validator.measure(columns))
    assert (whole.rows, whole.requests) == (len(raws), len(raws))
    each = [validator(codecs.decode(raw)[0]) for raw in raws]
    ours, theirs = (combine(one, batching(*INPUTS), CPU) for one in ([whole], each))
    assert list(ours.inputs) == list(theirs.inputs)
    for tensor, own in zip(ours.inputs.values(), theirs.inputs.values(), strict=True):
        for one, other in zip(tensor, own, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


ARRAYS: dict[str, Any] = {
    "id_list_features.lengths": np.array([1, 0, 2, 0, 1, 0]),
    "id_list_features.values": np.array([1, 2, 3, 4]),
}
SIZES = {"id_list_features.lengths": [3, 3], "id_list_features.values": [3, 1]}


def test_ids_lie_feature_by_feature() -> None:
    columns = single_rows(ARRAYS, SIZES, [SPARSE])
    assert {name: array.tolist() for name, array in columns.arrays.items()} == {
        "id_list_features.lengths": [1, 0, 0, 1, 2, 0],
        "id_list_features.values": [1, 4, 2, 3],
    }


@pytest.mark.parametrize(
    ("arrays", "sizes"),
    [
        ({"id_list_features.lengths": None}, {}),
        ({"id_list_features.values": None}, {}),
        ({}, {"id_list_features.lengths": [2, 4]}),
        ({}, {"id_list_features.values": [2, 2]}),
        ({"id_list_features.lengths": np.array([1, 0, 2, 0, 2, -1])}, {}),
        ({"id_list_features.lengths": np.array([2**62, 2**62, 2**62, 0, 1, 0])}, {}),
        ({"id_list_features.lengths": np.zeros((6, 2), int)}, {}),
        ({"id_list_features.values": np.zeros((4, 1), int)}, {}),
    ],
)
def test_what_is_not_put_together(arrays: dict[str, Any], sizes: dict[str, Any]) -> None:
    given = {name: array for name, array in {**ARRAYS, **arrays}.items() if array is not None}
    with pytest.raises(InvalidRequest):
        single_rows(given, {**SIZES, **sizes}, [SPARSE])


def test_features_that_are_not_known_are_no_rows() -> None:
    """Alone such requests say nothing of their rows."""
    hidden = replace(SPARSE, num_features=None, features=(), ids_below=())
    served = predictor(Exact(INPUTS, "dict_of_tensor"), hidden)
    raws = [as_raw({"id_list_features.lengths": [1], "id_list_features.values": [1]})] * 2
    assert [one.status for one in ask(Engine("hidden", served, Options()), raws)] == [400, 400]
