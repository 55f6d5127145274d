"""One result back into the answers of its requests."""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import (
    CPU,
    DENSE,
    SPARSE,
    SPLITS,
    WEIGHTED,
    Exact,
    batching,
    examples,
    lists_of_requests,
)
from torchrec_handler.archive.format import Count, InputSignature, OutputSplit
from torchrec_handler.errors import PredictError
from torchrec_handler.serve.batch import combine, cut
from torchrec_handler.serve.predict import HostResult, predict
from torchrec_handler.serve.request import Sparse, ValidRequest
from torchrec_handler.serve.split import Splitter, answer


def host(**outputs: tuple[list[float], ...]) -> HostResult:
    return {name: tuple(map(np.array, tensors)) for name, tensors in outputs.items()}


def plain(value: Any) -> Any:
    """Arrays as lists, at any depth."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value.tolist()


def by_rows(*factors: int) -> tuple[OutputSplit, ...]:
    return tuple(OutputSplit(counts=(Count(factor=k),), shape=()) for k in factors)


def rows(*counts: int) -> list[ValidRequest]:
    return [ValidRequest(rows=count, inputs={}) for count in counts]


def ids(*lengths: Any, shared: Any = None) -> ValidRequest:
    """A request of a sparse input `ids`, of lengths [F, B]; its values do not matter here."""
    counted = np.array(lengths, np.int32)
    values = np.zeros(counted.sum(), np.int32)
    mask = None if shared is None else np.array(shared)
    sparse = Sparse(lengths=counted, values=values, weights=None, shared=mask)
    return ValidRequest(rows=counted.shape[1], inputs={"ids": sparse})


def of(name: str, *features: int, factor: int = 1, shape: tuple[int, ...] = ()) -> OutputSplit:
    count = Count(factor=factor, input=name, features=features)
    return OutputSplit(counts=(count,), shape=shape)


def by_ids(*features: int, factor: int = 1, shape: tuple[int, ...] = ()) -> OutputSplit:
    return of("ids", *features, factor=factor, shape=shape)


def test_splits_a_dict_of_tensor_as_torchrec_does() -> None:
    """ResultSplitTest.SplitDictOfTensor."""
    result = host(par=([0, 1, 2],), foo=([3, 4, 5],))
    splitter = Splitter({"par": by_rows(1), "foo": by_rows(1)}, "dict_of_tensor")
    first, second = splitter.split(result, rows(2, 1))
    assert plain(first) == {"par": [[0, 1]], "foo": [[3, 4]]}
    assert plain(second) == {"par": [[2]], "foo": [[5]]}


def test_each_output_has_its_own_number_of_values_a_row() -> None:
    """ResultSplitTest.SplitDictOfTensorVariableLength: of 3 rows, "foo" has two values each."""
    result = host(par=([0, 1, 2],), foo=([3, 4, 5, 6, 7, 8],))
    splitter = Splitter({"par": by_rows(1), "foo": by_rows(2)}, "dict_of_tensor")
    first, second = splitter.split(result, rows(2, 1))
    assert plain(first) == {"par": [[0, 1]], "foo": [[3, 4, 5, 6]]}
    assert plain(second) == {"par": [[2]], "foo": [[7, 8]]}


def test_splits_a_dict_of_tensors_as_torchrec_does() -> None:
    """ResultSplitTest.SplitDictOfTensors: every tensor of a tuple by its own factor."""
    result = host(
        par=([0, 1, 2, 3], [4, 5], [6, 7]),
        foo=([8, 9], [10, 11], [12, 13, 14, 15]),
    )
    splits = {"par": by_rows(2, 1, 1), "foo": by_rows(1, 1, 2)}
    first, second = Splitter(splits, "dict_of_tensors").split(result, rows(1, 1))
    assert plain(first) == {"par": [[0, 1], [4], [6]], "foo": [[8], [10], [12, 13]]}
    assert plain(second) == {"par": [[2, 3], [5], [7]], "foo": [[9], [11], [14, 15]]}


def test_masks_go_to_every_request_whole() -> None:
    """ResultSplitTest.SplitDictWithMaskTensor."""
    result = host(par=([0, 1, 2], [3, 4, 5]), foo=([2, 1, 0], [5, 4, 3]))
    splitter = Splitter({"par": by_rows(1), "foo": by_rows(1)}, "dict_with_mask_tensor")
    first, second = splitter.split(result, rows(2, 1))
    assert plain(first) == {"par": [[0, 1], [3, 4, 5]], "foo": [[2, 1], [5, 4, 3]]}
    assert plain(second) == {"par": [[2], [3, 4, 5]], "foo": [[0], [5, 4, 3]]}


def test_a_mask_may_have_any_length() -> None:
    """Only what is cut must be a multiple of the rows."""
    result = host(par=([0, 1, 2, 3], [1, 0, 1]))
    splitter = Splitter({"par": by_rows(2)}, "dict_with_mask_tensor")
    first, second = splitter.split(result, rows(1, 1))
    assert plain(first) == {"par": [[0, 1], [1, 0, 1]]}
    assert plain(second) == {"par": [[2, 3], [1, 0, 1]]}


def test_a_mask_that_follows_the_batch_is_cut() -> None:
    result = host(par=([0, 1, 2], [3, 4, 5]))
    splitter = Splitter({"par": by_rows(1, 1)}, "dict_with_mask_tensor")
    first, second = splitter.split(result, rows(2, 1))
    assert plain([first, second]) == [{"par": [[0, 1], [3, 4]]}, {"par": [[2], [5]]}]
    joined = splitter.join([first, second], rows(2, 1))
    assert plain(joined) == {"par": [[0, 1, 2], [3, 4, 5]]}


def test_values_of_ids_go_to_the_request_of_the_ids() -> None:
    """One score a candidate; a request without candidates gets an empty list."""
    requests = [ids([3]), ids([0]), ids([1, 2])]
    splitter = Splitter({"scores": (by_ids(),), "twice": (by_ids(factor=2),)}, "dict_of_tensor")
    result = host(scores=([0, 1, 2, 3, 4, 5],), twice=(list(range(12)),))
    first, second, third = splitter.split(result, requests)
    assert plain(first) == {"scores": [[0, 1, 2]], "twice": [[0, 1, 2, 3, 4, 5]]}
    assert plain(second) == {"scores": [[]], "twice": [[]]}
    assert plain(third) == {"scores": [[3, 4, 5]], "twice": [[6, 7, 8, 9, 10, 11]]}


def test_of_several_features_a_request_gets_its_own_part_of_each() -> None:
    """Ids are combined feature by feature, so a request's do not lie one behind another."""
    requests = [ids([1, 1], [0, 1], [2, 0]), ids([1], [2], [1])]
    splits = {"all": (by_ids(),), "one": (by_ids(1),), "two": (by_ids(2, 0),)}
    # Feature by feature: a request's letter, and its place in the request.
    combined = host(
        all=([0, 1, 100, 2, 101, 102, 3, 4, 103],),
        one=([2, 101, 102],),
        two=([3, 4, 103, 0, 1, 100],),
    )
    first, second = Splitter(splits, "dict_of_tensor").split(combined, requests)
    assert plain(first) == {"all": [[0, 1, 2, 3, 4]], "one": [[2]], "two": [[3, 4, 0, 1]]}
    assert plain(second) == {
        "all": [[100, 101, 102, 103]],
        "one": [[101, 102]],
        "two": [[103, 100]],
    }


def test_what_rows_share_counts_in_each_of_them() -> None:
    requests = [ids([2, 0, 0], [1, 0, 1], shared=[True, False]), ids([1], [0])]
    splitter = Splitter({"user": (by_ids(0),), "item": (by_ids(1),)}, "dict_of_tensor")
    result = host(user=([0, 1, 0, 1, 0, 1, 7],), item=([4, 5],))
    first, second = splitter.split(result, requests)
    assert plain(first) == {"user": [[0, 1, 0, 1, 0, 1]], "item": [[4, 5]]}
    assert plain(second) == {"user": [[7]], "item": [[]]}


def error_of(splits: tuple[OutputSplit, ...], result: Any, requests: list[ValidRequest]) -> str:
    with pytest.raises(PredictError) as caught:
        Splitter({"par": splits}, "dict_of_tensor").split(result, requests)
    return str(caught.value)


def test_refuses_a_first_axis_that_counts_something_else() -> None:
    """A multiple of the rows is not enough: nobody would know whose the values are."""
    said = "output 'par': received shape (6,), expected a first axis of "
    six = host(par=(list(range(6)),))
    assert error_of(by_rows(1), six, rows(2, 1)) == f"{said}1 x 3 rows"
    assert error_of(by_rows(1), six, rows(3)) == f"{said}1 x 3 rows"
    found = error_of((by_ids(1, factor=2),), six, [ids([1], [1]), ids([2], [1])])
    assert found == f"{said}2 x 2 ids of ids, features 1"
    masked = Splitter({"par": by_rows(1)}, "dict_with_mask_tensor")
    with pytest.raises(PredictError, match=re.escape(said)):
        masked.split(host(par=(list(range(6)), [1])), rows(2, 1))


def test_refuses_outputs_that_nobody_has_seen() -> None:
    message = "so it is not known whose its values are"
    assert error_of((), host(par=([0],)), rows(1)) == (
        f"output 'par': had 0 tensors when the model was observed, {message}"
    )
    assert error_of((), host(foo=([0],)), rows(1)) == (
        f"output 'foo': was not given when the model was observed, {message}"
    )


def test_what_rows_and_ids_would_cut_alike_is_cut() -> None:
    """And no request of a batch gets another's where they would not; alone it gets its own."""
    either = (OutputSplit(counts=(Count(factor=2), Count(factor=1, input="ids")), shape=()),)
    splitter = Splitter({"par": either}, "dict_of_tensor")
    eight = host(par=(list(range(8)),))
    first, second = splitter.split(eight, [ids([2, 2]), ids([2, 2])])
    assert plain([first, second]) == [{"par": [[0, 1, 2, 3]]}, {"par": [[4, 5, 6, 7]]}]
    assert error_of(either, eight, [ids([3, 2]), ids([2, 1])]) == (
        "output 'par': it cannot be told whether its values are for rows or for ids"
    )
    (alone,) = splitter.split(host(par=([0, 1, 2, 3, 4],)), [ids([3, 2])])
    assert plain(alone) == {"par": [[0, 1, 2, 3, 4]]}
    assert error_of(either, host(par=([0],)), [ids([3, 2])]) == (
        "output 'par': received shape (1,), expected a first axis of 2 x 2 rows or 1 x 5 ids of ids"
    )


def test_what_depends_on_the_rest_of_the_batch_is_no_answer() -> None:
    """Padded to the longest list of a batch; a request alone gets what it always gets."""
    splits = (by_ids(shape=(2,)),)
    wide: HostResult = {"par": (np.zeros((2, 3)),)}
    assert error_of(splits, wide, [ids([1]), ids([1])]) == (
        "output 'par': received shape (2, 3), expected (…, 2)"
    )
    (alone,) = Splitter({"par": splits}, "dict_of_tensor").split(wide, [ids([2])])
    assert alone["par"][0].shape == (2, 3)


def test_a_model_that_squeezes_leaves_one_row_its_axis() -> None:
    splitter = Splitter(
        {"par": (OutputSplit(counts=(Count(factor=1),), shape=(3,)),)}, "dict_of_tensor"
    )
    (alone,) = splitter.split(host(par=([1, 2, 3],)), rows(1))
    assert plain(alone) == {"par": [[[1, 2, 3]]]}


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
    return Splitter(SPLITS[result_metadata], result_metadata).split(result, requests)


def is_equal(left: HostResult, right: HostResult) -> bool:
    return left.keys() == right.keys() and all(
        len(left[name]) == len(right[name]) and all(map(np.array_equal, left[name], right[name]))
        for name in left
    )


class TestTogetherIsAsAlone:
    """For any requests, the answers to a batch are those to each request sent alone."""

    @examples()
    @given(lists_of_requests(DENSE, WEIGHTED))
    def test_dict_of_tensor(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, "dict_of_tensor")

    @examples()
    @given(lists_of_requests(DENSE, WEIGHTED))
    def test_dict_of_tensors(self, requests: list[ValidRequest]) -> None:
        together_is_as_alone(requests, "dict_of_tensors")

    @examples()
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

    @examples()
    @given(lists_of_requests(DENSE, WEIGHTED), st.integers(1, 5))
    def test_dict_of_tensor(self, requests: list[ValidRequest], most: int) -> None:
        joining_undoes_cutting(requests, most, "dict_of_tensor")

    @examples()
    @given(lists_of_requests(DENSE, WEIGHTED), st.integers(1, 5))
    def test_dict_of_tensors(self, requests: list[ValidRequest], most: int) -> None:
        joining_undoes_cutting(requests, most, "dict_of_tensors")

    @examples()
    @given(lists_of_requests(DENSE, WEIGHTED), st.integers(1, 5))
    def test_dict_with_mask_tensor(self, requests: list[ValidRequest], most: int) -> None:
        joining_undoes_cutting(requests, most, "dict_with_mask_tensor")


def joining_undoes_cutting(requests: list[ValidRequest], most: int, result_metadata: str) -> None:
    joined = cut_and_joined(
        requests,
        most,
        Splitter(SPLITS[result_metadata], result_metadata),
        lambda pieces: answers(pieces, result_metadata),
    )
    assert all(map(is_equal, joined, answers(requests, result_metadata)))


def cut_and_joined(
    requests: list[ValidRequest],
    most: int,
    splitter: Splitter,
    answers_of: Callable[[list[ValidRequest]], list[HostResult]],
) -> list[HostResult]:
    pieces: list[list[tuple[HostResult, ValidRequest]]] = [[] for _ in requests]
    for call in cut(requests, most):
        found = answers_of([piece for _, piece in call])
        for (position, piece), part in zip(call, found, strict=True):
            pieces[position].append((part, piece))
    return [
        splitter.join([part for part, _ in parts], [piece for _, piece in parts])
        for parts in pieces
    ]


class TestOutputsOfIds:
    """A number an id that tells the id, its feature and its weight: whoever gets it must own it."""

    SPLITS: ClassVar[Mapping[str, tuple[OutputSplit, ...]]] = {
        "row": by_rows(1),
        "all": (of(WEIGHTED.name),),
        "first": (of(WEIGHTED.name, 0),),
        "second": (of(WEIGHTED.name, 1, factor=2),),
        "turned": (of(SPARSE.name, 2, 0),),
    }

    @examples()
    @given(lists_of_requests(SPARSE, WEIGHTED))
    def test_together_is_as_alone(self, requests: list[ValidRequest]) -> None:
        together = self.answers(requests)
        assert all(map(is_equal, together, map(self.alone, requests)))

    @examples()
    @given(lists_of_requests(SPARSE, WEIGHTED), st.integers(1, 5))
    def test_joining_undoes_cutting(self, requests: list[ValidRequest], most: int) -> None:
        splitter = Splitter(self.SPLITS, "dict_of_tensor")
        joined = cut_and_joined(requests, most, splitter, self.answers)
        assert all(map(is_equal, joined, map(self.alone, requests)))

    def answers(self, requests: list[ValidRequest]) -> list[HostResult]:
        return Splitter(self.SPLITS, "dict_of_tensor").split(self.whole(requests), requests)

    def alone(self, request: ValidRequest) -> HostResult:
        """What the model gives for a request alone, uncut."""
        return self.whole([request])

    def whole(self, requests: list[ValidRequest]) -> HostResult:
        inputs: Any = combine(requests, batching(SPARSE, WEIGHTED), CPU).inputs
        rows = sum(request.rows for request in requests)
        scored = by_feature(inputs, WEIGHTED)
        weights = torch.split(inputs[f"{WEIGHTED.name}.weights"], [len(part) for part in scored])
        first, second = (one * 100 + other for one, other in zip(scored, weights, strict=True))
        _, _, third = sparse = by_feature(inputs, SPARSE)
        outputs = {
            "row": torch.arange(rows) * 0,
            "all": torch.cat([first, second + 0.5]),
            "first": first,
            "second": torch.stack([second, -second], dim=1).reshape(-1),
            "turned": torch.cat([third, sparse[0] + 0.5]),
        }
        return {name: (value.numpy(),) for name, value in outputs.items()}


def by_feature(inputs: Any, entry: InputSignature) -> tuple[torch.Tensor, ...]:
    """The ids of each feature of a batch."""
    lengths = inputs[f"{entry.name}.lengths"].reshape(entry.num_features, -1).sum(dim=1)
    return torch.split(inputs[f"{entry.name}.values"].double(), lengths.tolist())


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
