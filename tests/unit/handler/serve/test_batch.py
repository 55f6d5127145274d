"""Requests into one forward call, and back out of it by rows."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.inference.modules import BatchingMetadata

from tests.support.exact import (
    CPU,
    DENSE,
    EMBEDDING,
    INPUTS,
    SPARSE,
    WEIGHTED,
    Exact,
    batching,
    examples,
    lists_of_requests,
)
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.serve.batch import combine, cut, take_rows
from torchrec_handler.serve.request import Sparse, ValidRequest


def request(name: str, value: Any, rows: int) -> ValidRequest:
    return ValidRequest(rows=rows, inputs={name: value})


def weighted(lists: list[list[int]]) -> Sparse:
    """One row's ids, feature by feature, each with weight 1."""
    values = np.array([value for ids in lists for value in ids], np.int32)
    return Sparse(
        lengths=np.array([[len(ids)] for ids in lists], np.int32),
        values=values,
        weights=np.ones(len(values), np.float32),
    )


def scores(requests: list[ValidRequest], *inputs: InputSignature) -> torch.Tensor:
    return Exact(inputs, "dict_of_tensor").scores(combine(requests, batching(*inputs), CPU).inputs)


def test_combines_weighted_sparse_as_torchrec_does() -> None:
    """BatchingTest.SparseCombineTest."""
    name = "id_score_list_features"
    requests = [
        request(name, weighted([[0, 1], [2]]), rows=1),
        request(name, weighted([[], [3]]), rows=1),
    ]
    batch = combine(requests, batching(WEIGHTED), CPU)
    assert batch.rows == (1, 1)
    assert {key: np.asarray(value).tolist() for key, value in batch.inputs.items()} == {
        f"{name}.lengths": [2, 0, 1, 1],
        f"{name}.values": [0, 1, 2, 3],
        f"{name}.weights": [1.0, 1.0, 1.0, 1.0],
    }


def test_gives_what_a_request_shares_to_all_its_rows() -> None:
    """In requests of two rows and of one: the first has its first feature's ids once."""
    name = "id_score_list_features"
    shares = Sparse(
        lengths=np.array([[2, 0], [1, 2]], np.int32),
        values=np.array([3, 4, 5, 6, 7], np.int32),
        weights=np.array([1, 2, 3, 4, 5], np.float32),
        shared=np.array([True, False]),
    )
    requests = [request(name, shares, rows=2), request(name, weighted([[8], [9, 9]]), rows=1)]
    batch = combine(requests, batching(WEIGHTED), CPU)
    assert {key: np.asarray(value).tolist() for key, value in batch.inputs.items()} == {
        f"{name}.lengths": [2, 2, 1, 1, 2, 2],
        f"{name}.values": [3, 4, 3, 4, 8, 5, 6, 7, 9, 9],
        f"{name}.weights": [1, 2, 1, 2, 1, 3, 4, 5, 1, 1],
    }


def ranking(rows: int, ids: int) -> ValidRequest:
    """A request whose first feature is shared."""
    lengths = np.zeros((2, rows), np.int32)
    lengths[0, 0] = ids
    sparse = Sparse(
        lengths=lengths,
        values=np.zeros(ids, np.int32),
        weights=np.ones(ids, np.float32),
        shared=np.array([True, False]),
    )
    return request(WEIGHTED.name, sparse, rows)


class TestLookingUpOnce:
    """Is for requests that repeat many ids, in lists that are not short."""

    @pytest.mark.parametrize(
        ("requests", "rows", "ids", "pays"),
        [
            (1, 1_000, 100, True),
            (1, 20_000, 10, True),
            (1, 1_000, 50, False),  # few ids
            (1, 20_000, 3, False),  # short lists
            (64, 10, 200, False),  # small requests
        ],
    )
    def test_pays(
        self,
        requests: int,
        rows: int,
        ids: int,
        pays: bool,  # noqa: FBT001  a table's column
    ) -> None:
        batch = combine([ranking(rows, ids)] * requests, batching(WEIGHTED), CPU)
        assert bool(batch.shared) is pays

    def test_is_told_of_the_tensors_that_the_model_gets(self) -> None:
        requests = [ranking(1_000, 100), ranking(1, 1), ranking(2, 1)]
        batch = combine(requests, batching(WEIGHTED), CPU)
        (shared,) = batch.shared
        assert shared.lengths is batch.inputs[f"{WEIGHTED.name}.lengths"]
        assert shared.values is batch.inputs[f"{WEIGHTED.name}.values"]
        assert shared.weights is batch.inputs[f"{WEIGHTED.name}.weights"]
        assert shared.rows.tolist() == [1_000, 1, 2]
        assert shared.shared.tolist() == [[True, False]] * 3


def test_combines_embeddings_as_torchrec_does() -> None:
    """BatchingTest.EmbeddingCombineTest: a list of one [B, D] tensor a feature."""
    requests = [
        request("embedding_features", np.array([[[0], [1]], [[2], [3]]], np.float32), rows=2),
        request("embedding_features", np.array([[[4], [5]]], np.float32), rows=1),
    ]
    batch = combine(requests, batching(EMBEDDING), CPU)
    features = batch.inputs["embedding_features"]
    assert [feature.tolist() for feature in features] == [[[0], [2], [4]], [[1], [3], [5]]]


def test_combines_dense_as_torchrec_does() -> None:
    """BatchingTest.DenseCombineTest."""
    first = np.array([[1.1, 2.0], [0.3, 1.2]], np.float32)
    second = np.array([[0.9, 2.3]], np.float32)
    requests = [request("float_features", first, rows=2), request("float_features", second, rows=1)]
    combined = combine(requests, batching(DENSE), CPU).inputs["float_features"]
    expected = torch.tensor([[1.1, 2.0], [0.3, 1.2], [0.9, 2.3]])
    assert isinstance(combined, torch.Tensor)
    assert torch.equal(combined, expected)


def test_names_and_types_are_the_predict_modules_own() -> None:
    requests = [
        ValidRequest(
            rows=1,
            inputs={
                DENSE.name: np.ones((1, 3), np.float32),
                SPARSE.name: Sparse(
                    lengths=np.array([[1], [0], [2]], np.int32),
                    values=np.array([1, 2, 3], np.int32),
                    weights=None,
                ),
                WEIGHTED.name: weighted([[4], [5]]),
                EMBEDDING.name: np.ones((1, 2, 4), np.float32),
            },
        )
    ]
    inputs = combine(requests, batching(*INPUTS), CPU).inputs
    shown = {
        key: (tuple(value.shape), value.dtype)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    assert shown == {
        "float_features": ((1, 3), torch.float32),
        "id_list_features.lengths": ((3,), torch.int32),
        "id_list_features.values": ((3,), torch.int32),
        "id_score_list_features.lengths": ((2,), torch.int32),
        "id_score_list_features.values": ((2,), torch.int32),
        "id_score_list_features.weights": ((2,), torch.float32),
    }
    embedding = inputs["embedding_features"]
    assert [(tuple(part.shape), part.dtype) for part in embedding] == [((1, 4), torch.float32)] * 2


def test_pinned_memory_is_for_inputs_that_leave_the_host() -> None:
    """A factory written for CUDA pins; served on a CPU nothing is pinned, or it would fail."""
    metadata = {"float_features": BatchingMetadata(type="dense", device="cpu", pinned=[""])}
    requests = [request("float_features", np.ones((2, 3), np.float32), rows=2)]
    combined = combine(requests, metadata, CPU).inputs["float_features"]
    assert isinstance(combined, torch.Tensor)
    assert not combined.is_pinned()


def test_a_model_may_write_to_what_all_rows_share() -> None:
    """A shared row is a view of one; the forward call gets memory of its own."""
    shared = np.broadcast_to(np.ones((1, 3), np.float32), (4, 3))
    combined = combine([request("float_features", shared, rows=4)], batching(DENSE), CPU)
    block = combined.inputs["float_features"]
    assert isinstance(block, torch.Tensor)
    block[0] += 1
    assert block.tolist() == [[2, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert shared.tolist() == [[1, 1, 1]] * 4


class TestTogetherIsAsAlone:
    """For any requests, a row's answer is the one it has alone."""

    @examples()
    @given(lists_of_requests(DENSE))
    def test_dense(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, DENSE)

    @examples()
    @given(lists_of_requests(SPARSE))
    def test_sparse(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, SPARSE)

    @examples()
    @given(lists_of_requests(WEIGHTED))
    def test_weighted_sparse(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, WEIGHTED)

    @examples()
    @given(lists_of_requests(EMBEDDING))
    def test_embedding(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, EMBEDDING)


def together_is_as_alone(requests: list[ValidRequest], entry: InputSignature) -> None:
    alone = [scores([request], entry) for request in requests]
    assert torch.equal(scores(requests, entry), torch.cat(alone))


@examples()
@given(lists_of_requests(*INPUTS), st.integers(1, 9))
def test_cutting_changes_no_row(requests: list[ValidRequest], most: int) -> None:
    whole = scores(requests, *INPUTS)
    pieces = [piece for call in cut(requests, most) for _, piece in call]
    assert torch.equal(torch.cat([scores([piece], *INPUTS) for piece in pieces]), whole)


@examples()
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 9))
def test_cuts_only_what_is_too_large(rows: list[int], most: int) -> None:
    """Calls hold whole requests, as many as fit; only a request that is too large is cut."""
    requests = [request("x", np.arange(count, dtype=np.float32), count) for count in rows]
    calls = list(cut(requests, most))
    received = [0] * len(rows)
    for call in calls:
        assert sum(piece.rows for _, piece in call) <= most
        for position, piece in call:
            block = np.asarray(piece.inputs["x"])
            assert block.tolist() == list(
                range(received[position], received[position] + piece.rows)
            )
            received[position] += piece.rows
            assert piece.rows == rows[position] or rows[position] > most
    assert received == rows
    for left, right in pairwise(calls):
        assert sum(piece.rows for _, piece in [*left, right[0]]) > most


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (0, 3), (2, 3)])
def test_takes_rows_of_every_feature(start: int, stop: int) -> None:
    lists = [[[1], [], [2, 3]], [[4, 5], [6], []]]
    sparse = Sparse(
        lengths=np.array([[len(ids) for ids in feature] for feature in lists], np.int32),
        values=np.array([1, 2, 3, 4, 5, 6], np.int32),
        weights=np.array([1, 2, 3, 4, 5, 6], np.float32),
    )
    piece = take_rows(request("id_list_features", sparse, rows=3), start, stop)
    taken = piece.inputs["id_list_features"]
    expected = [feature[start:stop] for feature in lists]
    flat = [value for feature in expected for ids in feature for value in ids]
    assert piece.rows == stop - start
    assert isinstance(taken, Sparse)
    assert taken.lengths.tolist() == [[len(ids) for ids in feature] for feature in expected]
    assert taken.values.tolist() == flat
    assert taken.weights is not None
    assert taken.weights.tolist() == flat
    assert taken.shared is None


@pytest.mark.parametrize(
    ("start", "stop", "lengths", "values"),
    [
        (0, 2, [[2, 0], [1, 0]], [1, 2, 3]),
        (1, 3, [[2, 0], [0, 2]], [1, 2, 4, 5]),
        (2, 3, [[2], [2]], [1, 2, 4, 5]),
    ],
)
def test_takes_what_is_shared_along(
    start: int, stop: int, lengths: list[list[int]], values: list[int]
) -> None:
    sparse = Sparse(
        lengths=np.array([[2, 0, 0], [1, 0, 2]], np.int32),
        values=np.array([1, 2, 3, 4, 5], np.int32),
        weights=None,
        shared=np.array([True, False]),
    )
    piece = take_rows(request("id_list_features", sparse, rows=3), start, stop)
    taken = piece.inputs["id_list_features"]
    assert isinstance(taken, Sparse)
    assert taken.lengths.tolist() == lengths
    assert taken.values.tolist() == values
    assert taken.shared is not None
    assert taken.shared.tolist() == [True, False]
