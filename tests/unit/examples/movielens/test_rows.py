"""Bags and rows: what training, tests and requests agree on."""

import json

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from examples.movielens.data import SPARSE_FEATURES, Dataset
from examples.movielens.rows import Bags, Rows, take_bags

BAGS = Bags(
    lengths=np.array([[1, 0, 2], [1, 1, 1]], dtype=np.int32),
    values=np.array([7, 8, 9, 1, 2, 3], dtype=np.int32),
)


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> Rows:
    return dataset.test()


def same(received: Bags, lengths: list[list[int]], values: list[int]) -> None:
    assert received.lengths.tolist() == lengths
    assert received.values.tolist() == values
    assert received.lengths.dtype == np.int32
    assert received.values.dtype == np.int32


def test_features_are_joined_one_behind_another() -> None:
    history = Bags(lengths=np.array([[1, 0, 2]], dtype=np.int32), values=BAGS.values[:3])
    joined = Bags.join([history, np.array([1, 2, 3])])
    same(joined, BAGS.lengths.tolist(), BAGS.values.tolist())
    assert len(joined) == 3


def test_rows_are_taken_in_the_order_asked_for() -> None:
    same(BAGS.take(np.array([2, 0, 2])), [[2, 1, 2], [1, 1, 1]], [8, 9, 7, 8, 9, 3, 1, 3])
    same(BAGS.take(slice(1, 2)), [[0], [1]], [2])
    same(BAGS.take(slice(0, 0)), [[], []], [])


def test_an_instance_holds_the_ids_of_its_row_by_feature() -> None:
    assert BAGS.instances(["history", "movie"]) == [
        {"history": [7], "movie": [1]},
        {"history": [], "movie": [2]},
        {"history": [8, 9], "movie": [3]},
    ]


def test_bags_are_taken_from_where_they_start() -> None:
    values = np.array([1, 2, 3, 4], dtype=np.int32)
    taken = take_bags(values, np.array([3, 0, 1]), np.array([1, 2, 0], dtype=np.int32))
    assert taken.tolist() == [4, 1, 2]


def test_a_request_holds_the_rows_without_their_labels(rows: Rows) -> None:
    some = rows.take(slice(100, 150))
    body = json.loads(json.dumps(some.request()))
    assert set(body) == {"float_features", "id_list_features.lengths", "id_list_features.values"}
    back = Rows(
        dense=np.array(body["float_features"], dtype=np.float32),
        lengths=np.array(body["id_list_features.lengths"]).reshape(len(SPARSE_FEATURES), -1),
        values=np.array(body["id_list_features.values"]),
        label=some.label,
    )
    assert (back.dense == some.dense).all()
    assert (back.lengths == some.lengths).all()
    assert (back.values == some.values).all()


def test_taken_rows_are_those_of_the_keyed_jagged_tensor(rows: Rows) -> None:
    index = np.array([17, 3, 1_900])
    some = rows.take(index)
    whole = keyed(rows.take(slice(0, 2_000)))
    for name, jagged in keyed(some).to_dict().items():
        for position, row in enumerate(index):
            expected = whole[name].to_dense()[row]
            assert jagged.to_dense()[position].tolist() == expected.tolist()
    assert (some.dense == rows.dense[index]).all()
    assert (some.label == rows.label[index]).all()


def keyed(rows: Rows) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=list(SPARSE_FEATURES),
        lengths=torch.from_numpy(rows.lengths.ravel()),
        values=torch.from_numpy(rows.values),
    )
