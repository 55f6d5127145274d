"""Tensors that a server has read are answered as the same ones in JSON, alone or with others."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import INPUTS, Exact, examples, predictor
from tests.support.one_request import COLUMNS, JSON, codecs
from torchrec_handler.errors import InvalidRequest, RequestError, RequestTooLarge
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.observe import Totals
from torchrec_handler.serve.request import RawRequest, Response, TypedRequest

ROW: Mapping[str, Any] = {
    "float_features": [[3, 4.5, 5]],
    "id_list_features.lengths": [1, 0, 2],
    "id_list_features.values": [1, 2, 3],
    "id_score_list_features.lengths": [[1], [1]],
    "id_score_list_features.values": [4, 5],
    "id_score_list_features.weights": [0.5, 2],
    "embedding_features": [[[1, 2, 3, 4]], [[5, 6, 7, 8]]],
}
CHANGES: list[Mapping[str, Any]] = [
    {},
    {},
    {},
    {"float_features": [[1, 2]]},
    {"float_features": [[1, 2, 3], [1, 2, 3]]},
    {"float_features": [1, 2, 3]},
    {"float_features": [[float("1e39"), 0, 0]]},
    {"id_list_features.lengths": [0, 0, 0], "id_list_features.values": []},
    {"id_list_features.lengths": [2, 0, 2]},
    {"id_list_features.lengths": [1, -1, 3]},
    {"id_list_features.lengths": [1, 0, 0, 0, 1, 1]},
    {"id_list_features.values": [50, 2, 10]},
    {"id_score_list_features.weights": [1]},
    {"embedding_features": [[[1, 2, 3]], [[5, 6, 7]]]},
    {"embedding_features": [[[1, 2, 3, 4]] * 2] * 2},
    COLUMNS,
]


def arrays(document: Mapping[str, Any]) -> dict[str, Any]:
    integers = ("lengths", "values")
    return {
        name: np.array(value, np.int64 if name.endswith(integers) else np.float64)
        for name, value in document.items()
    }


def engine(result_metadata: str, limits: Limits) -> tuple[Engine, Totals]:
    methods = {"forward": True, "negative": True}
    served = predictor(
        Exact(INPUTS, result_metadata), *INPUTS, result_metadata=result_metadata, methods=methods
    )
    totals = Totals()
    return Engine("ranking", served, Options(limits=limits), totals), totals


def opened(outcome: Response | RequestError) -> Any:
    if isinstance(outcome, RequestError):
        return type(outcome), str(outcome)
    return {name: array.tolist() for name, array in outcome.arrays.items()}


def flat(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON answer's arrays, by the names that typed ones have."""
    found: dict[str, Any] = {}
    for name, value in answer.items():
        if isinstance(value, dict):
            found.update({f"{name}.{part}": own for part, own in value.items()})
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("result_metadata", ["dict_of_tensor", "dict_with_mask_tensor"])
@examples(0.4)
@given(
    documents=st.lists(
        st.tuples(st.sampled_from(CHANGES), st.sampled_from(["forward", "negative", "nothing"])),
        min_size=1,
        max_size=12,
    ),
    most=st.integers(1, 8),
)
def test_answers_are_those_of_json_columns_alone(
    result_metadata: str, documents: list[tuple[Mapping[str, Any], str]], most: int
) -> None:
    together, counted = engine(result_metadata, Limits(rows_per_forward=most))
    alone, expected = engine(result_metadata, Limits())
    bodies = [({**ROW, **change}, qualname) for change, qualname in documents]
    outcomes = together.predict([TypedRequest(arrays(body), name) for body, name in bodies])
    for (body, qualname), outcome in zip(bodies, outcomes, strict=True):
        raw = RawRequest(json.dumps(body).encode(), JSON, qualname=qualname)
        (wanted,) = alone.predict([raw])
        if isinstance(wanted, Response):
            assert opened(outcome) == flat(json.loads(wanted.body))
        else:
            assert opened(outcome) == opened(wanted)
    assert (counted.requests, counted.rows) == (expected.requests, expected.rows)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            {"dense": np.zeros(1)},
            InvalidRequest(
                said="unknown input", where="dense", expected=f"one of {', '.join(COLUMNS)}"
            ),
        ),
        (
            {"id_list_features.lengths": np.zeros(3)},
            InvalidRequest(
                where="id_list_features.lengths", received="float64", expected="integers"
            ),
        ),
        (
            {"float_features": np.array([["a"]])},
            InvalidRequest(where="float_features", received="<U1", expected="numbers"),
        ),
        (
            {"float_features": np.zeros((3, 3))},
            RequestTooLarge(
                where="float_features",
                received="9 elements",
                expected="at most 6 (limits.rows_per_request x 3 features)",
            ),
        ),
    ],
)
def test_what_is_no_input(given: dict[str, Any], error: RequestError) -> None:
    with pytest.raises(type(error)) as raised:
        codecs(rows_per_request=2).decode(TypedRequest(given))
    assert str(raised.value) == str(error)


def test_several_tensors_of_an_output_have_numbers() -> None:
    served, _ = engine("dict_of_tensors", Limits())
    (outcome,) = served.predict([TypedRequest(arrays(ROW))])
    assert list(opened(outcome)) == ["default.0", "default.1", "pair.0", "pair.1", "pair.2"]


def test_rows_that_are_alike_are_read_together() -> None:
    known = codecs()
    row, rows = TypedRequest(arrays(ROW)), TypedRequest(arrays(COLUMNS))
    other = TypedRequest(arrays({**ROW, "id_list_features.values": []}), "negative")
    assert sorted(known.group([row, rows, row, other, row])) == [[0, 2, 4], [1], [3]]
