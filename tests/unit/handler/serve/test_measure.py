"""What a request is going to hold; the words for what cannot be told are `test_validate`'s."""

from typing import Any

import numpy as np
import pytest

from tests.support.exact import INPUTS, SPARSE, WEIGHTED
from torchrec_handler.archive.format import Signature
from torchrec_handler.errors import InvalidRequest, RequestTooLarge
from torchrec_handler.options import Limits
from torchrec_handler.serve.measure import REMEMBERED, Measure
from torchrec_handler.serve.request import Columns

SIGNATURE = Signature(inputs=INPUTS, methods={"forward": True}, result_metadata="dict_of_tensor")
MOST_IDS = 100


def measure(ids_per_request: int = MOST_IDS) -> Measure:
    return Measure(SIGNATURE, Limits(ids_per_request=ids_per_request))


def columns(rows: int = 1, batch_size: int | None = None, **changed: Any) -> Columns:
    """A request of three ids and two weighted ones a row; `__` in a name stands for a dot."""
    arrays: dict[str, Any] = {
        "float_features": np.zeros((rows, 3)),
        "id_list_features.lengths": np.ones(3 * rows, np.int64),
        "id_list_features.values": np.zeros(3 * rows, np.int64),
        "id_score_list_features.lengths": np.ones(2 * rows, np.int64),
        "id_score_list_features.values": np.zeros(2 * rows, np.int64),
        "id_score_list_features.weights": np.zeros(2 * rows),
        "embedding_features": np.zeros((2, rows, 4)),
    }
    arrays.update({name.replace("__", "."): np.array(value) for name, value in changed.items()})
    return Columns(arrays=arrays, batch_size=batch_size)


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (columns(), (1, 5)),
        (columns(4), (4, 20)),
        (columns(4, batch_size=4), (4, 20)),
        (columns(batch_size=7), (7, 35)),
        (
            columns(4, id_list_features__lengths=[1, 1, 1], id_list_features__values=[0] * 3),
            (4, 20),
        ),
        (columns(id_list_features__lengths=[3, 0, 9], id_list_features__values=[0] * 12), (1, 14)),
    ],
)
def test_ids_are_counted_as_often_as_rows_have_them(
    request_: Columns, size: tuple[int, int]
) -> None:
    """Without their weights."""
    measured = measure()(request_)
    assert (measured.rows, measured.ids) == size


def test_requests_whose_shapes_differ_in_numbers_of_ids_alone_are_of_one_form() -> None:
    tell = measure()
    form = tell(columns(2)).form
    more = columns(2, id_list_features__lengths=[2] * 6, id_list_features__values=[0] * 12)
    assert tell(more).form is form
    others = [
        columns(),
        columns(batch_size=2),
        columns(2, float_features=[[1, 2, 3]]),
        columns(2, embedding_features=np.zeros((2, 1, 4))),
        columns(2, id_list_features__lengths=[[1], [1], [1]], id_list_features__values=[0] * 3),
    ]
    assert form not in {tell(other).form for other in others}


def test_more_shapes_than_are_remembered_are_measured_alike() -> None:
    tell = measure(10_000)
    for ids in [*range(REMEMBERED + 10), 0, 5, REMEMBERED]:
        request = columns(id_list_features__values=np.zeros(ids, np.int64))
        assert tell(request) == (1, ids + 2, tell(columns()).form)


def test_a_refusal_is_not_remembered_of_others() -> None:
    tell = measure()
    for _ in range(2):
        with pytest.raises(RequestTooLarge) as caught:
            tell(columns(21))
        assert str(caught.value) == (
            f"received 63 ids of {SPARSE.name} and 42 ids of {WEIGHTED.name}, "
            f"expected at most {MOST_IDS} ids (limits.ids_per_request)"
        )
        assert tell(columns(20)).ids == MOST_IDS


def test_a_flat_row_is_a_row() -> None:
    assert measure()(columns(float_features=[1, 2, 3])).rows == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"float_features": np.zeros((1, 2))}, "float_features: received shape 1 x 2, expected "),
        ({}, "id_list_features.lengths: missing, received "),
    ],
)
def test_an_array_before_a_missing_one_is_told_of_first(
    given: dict[str, Any], message: str
) -> None:
    """A client that sent part of a request hears of the part."""
    arrays = {"float_features": np.zeros((1, 3)), **given}
    with pytest.raises(InvalidRequest) as caught:
        measure()(Columns(arrays=arrays))
    assert str(caught.value).startswith(message)


def test_too_many_rows_are_told_of_before_missing_ids() -> None:
    arrays = dict(columns(rows=3).arrays)
    del arrays["id_list_features.values"]
    with pytest.raises(RequestTooLarge) as caught:
        Measure(SIGNATURE, Limits(rows_per_request=2))(Columns(arrays=arrays))
    assert str(caught.value) == "received 3 rows, expected at most 2 (limits.rows_per_request)"
