"""One result back into the answers of its requests."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.handler.serve.exact import (
    CPU,
    DENSE,
    THOUSAND,
    WEIGHTED,
    Exact,
    batching,
    lists_of_requests,
)
from torchrec_handler.errors import PredictError
from torchrec_handler.serve.batch import combine, cut
from torchrec_handler.serve.predict import HostResult, predict
from torchrec_handler.serve.request import ValidRequest
from torchrec_handler.serve.split import answer, join, split


def host(**outputs: tuple[list[float], ...]) -> HostResult:
    return {name: tuple(map(np.array, tensors)) for name, tensors in outputs.items()}


def plain(value: Any) -> Any:
    """Arrays as lists, at any depth."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value.tolist()


def test_splits_a_dict_of_tensor_as_torchrec_does() -> None:
    """ResultSplitTest.SplitDictOfTensor."""
    result = host(par=([0, 1, 2],), foo=([3, 4, 5],))
    first, second = split(result, (2, 1), "dict_of_tensor")
    assert plain(first) == {"par": [[0, 1]], "foo": [[3, 4]]}
    assert plain(second) == {"par": [[2]], "foo": [[5]]}


def test_each_output_has_its_own_number_of_values_a_row() -> None:
    """ResultSplitTest.SplitDictOfTensorVariableLength: of 3 rows, "foo" has two values each."""
    result = host(par=([0, 1, 2],), foo=([3, 4, 5, 6, 7, 8],))
    first, second = split(result, (2, 1), "dict_of_tensor")
    assert plain(first) == {"par": [[0, 1]], "foo": [[3, 4, 5, 6]]}
    assert plain(second) == {"par": [[2]], "foo": [[7, 8]]}


def test_splits_a_dict_of_tensors_as_torchrec_does() -> None:
    """ResultSplitTest.SplitDictOfTensors: every tensor of a tuple by its own factor."""
    result = host(
        par=([0, 1, 2, 3], [4, 5], [6, 7]),
        foo=([8, 9], [10, 11], [12, 13, 14, 15]),
    )
    first, second = split(result, (1, 1), "dict_of_tensors")
    assert plain(first) == {"par": [[0, 1], [4], [6]], "foo": [[8], [10], [12, 13]]}
    assert plain(second) == {"par": [[2, 3], [5], [7]], "foo": [[9], [11], [14, 15]]}


def test_masks_go_to_every_request_whole() -> None:
    """ResultSplitTest.SplitDictWithMaskTensor."""
    result = host(par=([0, 1, 2], [3, 4, 5]), foo=([2, 1, 0], [5, 4, 3]))
    first, second = split(result, (2, 1), "dict_with_mask_tensor")
    assert plain(first) == {"par": [[0, 1], [3, 4, 5]], "foo": [[2, 1], [5, 4, 3]]}
    assert plain(second) == {"par": [[2], [3, 4, 5]], "foo": [[0], [5, 4, 3]]}


def test_a_mask_may_have_any_length() -> None:
    """Only what is cut must be a multiple of the rows."""
    result = host(par=([0, 1, 2, 3], [1, 0, 1]))
    first, second = split(result, (1, 1), "dict_with_mask_tensor")
    assert plain(first) == {"par": [[0, 1], [1, 0, 1]]}
    assert plain(second) == {"par": [[2, 3], [1, 0, 1]]}


@pytest.mark.parametrize("result_metadata", ["dict_of_tensor", "dict_of_tensors"])
def test_refuses_a_result_that_is_no_multiple_of_the_rows(result_metadata: str) -> None:
    with pytest.raises(PredictError) as caught:
        split(host(par=([0, 1, 2],), foo=([0, 1, 2, 3],)), (2, 1), result_metadata)
    assert str(caught.value) == (
        "output 'foo': received shape (4,), expected a first axis of k x 3 rows"
    )


def test_refuses_masked_values_that_are_no_multiple_of_the_rows() -> None:
    with pytest.raises(PredictError) as caught:
        split(host(par=([0, 1], [1])), (2, 1), "dict_with_mask_tensor")
    assert str(caught.value) == (
        "output 'par': received shape (2,), expected a first axis of k x 3 rows"
    )


def test_answers_have_the_shape_of_their_result_type() -> None:
    one = host(par=([0, 1],))
    assert plain(answer(one, "dict_of_tensor")) == {"par": [0, 1]}
    two = host(par=([0, 1], [2, 3]))
    assert plain(answer(two, "dict_of_tensors")) == {"par": [[0, 1], [2, 3]]}
    assert plain(answer(two, "dict_with_mask_tensor")) == {
        "par": {"values": [0, 1], "mask": [2, 3]}
    }


def answers(requests: list[ValidRequest], result_metadata: str) -> list[HostResult]:
    batch = combine(requests, batching(DENSE, WEIGHTED), CPU)
    module = Exact((DENSE, WEIGHTED), result_metadata)
    result = predict(module, "forward", batch.inputs, result_metadata)
    return split(result, batch.rows, result_metadata)


def is_equal(left: HostResult, right: HostResult) -> bool:
    return left.keys() == right.keys() and all(
        len(left[name]) == len(right[name]) and all(map(np.array_equal, left[name], right[name]))
        for name in left
    )


class TestTogetherIsAsAlone:
    """For any requests, the answers to a batch are those to each request sent alone."""

    @THOUSAND
    @given(lists_of_requests(DENSE, WEIGHTED))
    def test_dict_of_tensor(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, "dict_of_tensor")

    @THOUSAND
    @given(lists_of_requests(DENSE, WEIGHTED))
    def test_dict_of_tensors(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, "dict_of_tensors")

    @THOUSAND
    @given(lists_of_requests(DENSE, WEIGHTED))
    def test_dict_with_mask_tensor(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, "dict_with_mask_tensor")


def together_is_as_alone(requests: list[ValidRequest], result_metadata: str) -> None:
    together = answers(requests, result_metadata)
    alone = [found for request in requests for found in answers([request], result_metadata)]
    assert len(together) == len(requests)
    assert all(map(is_equal, together, alone))


class TestJoiningUndoesCutting:
    """For any rows a forward call, a request's answer is the one it has whole."""

    @THOUSAND
    @given(lists_of_requests(DENSE, WEIGHTED), st.integers(1, 5))
    def test_dict_of_tensor(self, requests: list[ValidRequest], most: int) -> None:
        joining_undoes_cutting(requests, most, "dict_of_tensor")

    @THOUSAND
    @given(lists_of_requests(DENSE, WEIGHTED), st.integers(1, 5))
    def test_dict_of_tensors(self, requests: list[ValidRequest], most: int) -> None:
        joining_undoes_cutting(requests, most, "dict_of_tensors")

    @THOUSAND
    @given(lists_of_requests(DENSE, WEIGHTED), st.integers(1, 5))
    def test_dict_with_mask_tensor(self, requests: list[ValidRequest], most: int) -> None:
        joining_undoes_cutting(requests, most, "dict_with_mask_tensor")


def joining_undoes_cutting(requests: list[ValidRequest], most: int, result_metadata: str) -> None:
    pieces: list[list[HostResult]] = [[] for _ in requests]
    for call in cut(requests, most):
        found = answers([piece for _, piece in call], result_metadata)
        for (position, _), part in zip(call, found, strict=True):
            pieces[position].append(part)
    joined = [join(parts, result_metadata) for parts in pieces]
    assert all(map(is_equal, joined, answers(requests, result_metadata)))


def test_the_model_of_these_tests_tells_rows_apart() -> None:
    """Or the properties above would prove nothing: each input number moves its own row alone."""
    dense = np.arange(6, dtype=np.float32).reshape(2, 3)
    module = Exact((DENSE,), "dict_of_tensor")
    before = module.scores({DENSE.name: torch.from_numpy(dense)})
    for row in range(2):
        for feature in range(3):
            changed = dense.copy()
            changed[row, feature] += 1
            after = module.scores({DENSE.name: torch.from_numpy(changed)})
            assert (after != before).tolist() == [row == 0, row == 1]
