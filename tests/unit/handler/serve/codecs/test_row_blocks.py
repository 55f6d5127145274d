"""Rows that are read block by block are as if all had been read at once."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.exact import DENSE, EMBEDDING, SPARSE, WEIGHTED
from tests.support.one_request import codecs, raw, signature
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest, RequestError, RequestTooLarge
from torchrec_handler.serve.codecs import json_rows
from torchrec_handler.serve.request import Columns

INPUTS = (DENSE, SPARSE, WEIGHTED, EMBEDDING)
IDS_OR_ONE = "a list of ids (signed 64-bit integers), or one"
HUNDRED = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def decode(document: Any, block_rows: int, *inputs: InputSignature, **limits: int) -> Columns:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK_ROWS", block_rows)
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return codecs(signature(*inputs), **limits).decode(raw(body))[0]


IDS = st.lists(st.integers(0, 9), max_size=3)
NUMBER = st.integers(-4, 4)


def values_of(entry: InputSignature) -> dict[str, st.SearchStrategy[Any]]:
    """Feature -> what an instance may hold of it."""
    kinds = {
        "dense": NUMBER,
        "sparse": IDS | st.integers(0, 9),
        "weighted_sparse": st.lists(st.tuples(st.integers(0, 9), NUMBER), max_size=3),
        "embedding": st.lists(NUMBER, min_size=entry.width or 2, max_size=entry.width or 2),
    }
    return dict.fromkeys(entry.features, kinds[entry.type])


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Rows, of which each feature stands in all, in some and in `shared`, or in `shared` alone."""
    count = draw(st.integers(1, 9))
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    shared = {}
    for entry in INPUTS:
        for name, value in values_of(entry).items():
            places = draw(st.sampled_from(["all", "some", "shared"]))
            if places != "all":
                shared[name] = draw(value)
            for row in rows:
                if places == "all" or (places == "some" and draw(st.booleans())):
                    row[name] = draw(value)
    return {"instances": rows, "shared": shared} if shared else {"instances": rows}


@given(documents(), st.integers(1, 4))
@HUNDRED
def test_blocks_change_nothing(document: dict[str, Any], block_rows: int) -> None:
    whole = decode(document, 1_000, *INPUTS)
    received = decode(document, block_rows, *INPUTS)
    assert received.batch_size == whole.batch_size
    for name, mask in whole.shared.items():
        np.testing.assert_array_equal(received.shared[name], mask)
    assert set(received.arrays) == set(whole.arrays)
    for name, array in whole.arrays.items():
        # What all rows share of a dense input may come once or B times: `validate` takes either.
        expected = np.broadcast_to(array, received.arrays[name].shape)
        np.testing.assert_array_equal(received.arrays[name], expected, err_msg=name)
        assert received.arrays[name].dtype == array.dtype


def fault(document: Any, kind: type[RequestError] = InvalidRequest, **limits: int) -> str:
    with pytest.raises(kind) as caught:
        decode(document, 2, SPARSE, DENSE, **limits)
    return str(caught.value)


def rows(count: int, position: int, **given: Any) -> dict[str, Any]:
    """Good rows, but for one."""
    instances = [{"user": 1, "age": 1, "price": 2, "hour": 3} for _ in range(count)]
    instances[position].update(given)
    return {"instances": instances}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"user": "x"}, f'instances[5].user: received "x", expected {IDS_OR_ONE}'),
        ({"age": "x"}, 'instances[5].age: received "x", expected a number'),
        ({"film": 1}, "film: unknown feature, expected age, genres, hour, movie, price, user"),
    ],
)
def test_a_fault_is_named_by_its_row(given: dict[str, Any], message: str) -> None:
    assert fault(rows(7, 5, **given)) == message


def test_a_missing_feature_is_named_by_its_row() -> None:
    document = rows(7, 5)
    del document["instances"][5]["age"]
    assert fault(document) == "instances[5].age: missing, expected in every row"


def test_what_is_no_row_is_named() -> None:
    document = rows(7, 5)
    document["instances"][5] = 3
    assert fault(document) == "instances[5]: received 3, expected an object"


def test_a_name_given_twice_is_named_by_its_row() -> None:
    body = json.dumps(rows(7, 5)).encode()
    start = body.rindex(b'{"user"', 0, body.rindex(b'{"user"'))
    twice = body[:start] + b'{"user": 2, ' + body[start + 1 :]
    assert fault(twice) == "instances[5]: user is given twice"


def test_vectors_of_other_widths_in_another_block_are_refused() -> None:
    whole = InputSignature(name="history", type="dense", num_features=2)
    document = {"instances": [{"history": [1, 2]}] * 4 + [{"history": [1]}] * 2}
    with pytest.raises(InvalidRequest) as caught:
        decode(document, 2, whole)
    assert str(caught.value) == (
        "history: received 1 numbers in row 4, expected as many as in every row, 2"
    )


def test_ids_of_all_blocks_are_limited_together() -> None:
    message = "id_list_features: received more than 6 ids (limits.ids_per_request)"
    assert fault(rows(7, 5), RequestTooLarge, ids_per_request=6) == message
    shared = {"instances": [{"age": 1, "price": 2, "hour": 3}] * 7, "shared": {"user": 1}}
    assert fault(shared, RequestTooLarge, ids_per_request=6) == message
    decode(rows(7, 5), 2, SPARSE, DENSE, ids_per_request=7)
    decode(shared, 2, SPARSE, DENSE, ids_per_request=7)


@pytest.mark.parametrize("where", ["instances", "shared"])
def test_one_list_that_is_long_is_refused_before_it_is_objects(where: str) -> None:
    """Its block would take too much memory, whatever the others take."""
    ids = b"1000," * 3_000_000 + b"1"
    body = b'{"instances": [{"user": [%s]}]}' % ids
    if where == "shared":
        body = b'{"instances": [{"user": 1}], "shared": {"movie": [%s]}}' % ids
    with pytest.raises(RequestTooLarge, match=r"^body: received .* would take \d+ MB to read"):
        decode(body, 2, SPARSE)
