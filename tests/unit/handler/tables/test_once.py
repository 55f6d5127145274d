"""What is shared is looked up once by a collection that is given the batch's own tensors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.tables.once import SharedInput, find_shared, look_up_once

KEYS = ["user", "movie"]


def shared_input() -> SharedInput:
    """Requests of three and two rows: both share the user, the second one its movies too."""
    return SharedInput(
        lengths=torch.tensor([2, 2, 2, 1, 1, 1, 0, 2, 3, 3], dtype=torch.int32),
        values=torch.tensor([7, 8, 7, 8, 7, 8, 9, 9, 1, 2, 3, 4, 5, 6, 4, 5, 6], dtype=torch.int32),
        weights=torch.arange(17) / 2,
        rows=np.array([3, 2]),
        shared=np.array([[True, False], [True, True]]),
    )


def keyed(shared: SharedInput) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=KEYS, lengths=shared.lengths, values=shared.values, weights=shared.weights
    )


def test_copies_are_left_out() -> None:
    shared = shared_input()
    found = shared.without_copies(keyed(shared))
    assert found.keys() == KEYS
    assert found.lengths().tolist() == [2, 0, 0, 1, 0, 1, 0, 2, 3, 0]
    assert found.values().tolist() == [7, 8, 9, 1, 2, 3, 4, 5, 6]
    assert found.weights().tolist() == [0, 0.5, 3, 4, 4.5, 5, 5.5, 6, 6.5]


def test_pooled_copies_are_filled_in() -> None:
    """In blocks of columns of any width and order, several of a feature included."""
    pooled = torch.arange(20.0).reshape(5, 4)
    expected = pooled.clone()
    expected[:, 0] = pooled[[0, 1, 2, 3, 3], 0]
    expected[:, 1:3] = pooled[[0, 0, 0, 3, 3], 1:3]
    expected[:, 3] = pooled[[0, 0, 0, 3, 3], 3]
    shared_input().copy_rows(pooled, [1, 0, 0], [1, 2, 1])
    assert torch.equal(pooled, expected)


OWN: dict[str, Callable[[SharedInput], KeyedJaggedTensor]] = {
    "as they are": keyed,
    "through views": lambda shared: KeyedJaggedTensor(
        keys=KEYS,
        lengths=shared.lengths.view(2, 5).reshape(-1),
        values=shared.values.to(torch.int32),
        weights=shared.weights.view(-1) if shared.weights is not None else None,
    ),
    "without weights": lambda shared: KeyedJaggedTensor(
        keys=KEYS, lengths=shared.lengths, values=shared.values
    ),
    "under other names": lambda shared: KeyedJaggedTensor(
        keys=["a", "b"], lengths=shared.lengths, values=shared.values
    ),
}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_the_batchs_own_tensors_are_known(
    make: Callable[[SharedInput], KeyedJaggedTensor],
) -> None:
    others, shared = shared_input(), shared_input()
    with torch.inference_mode(), look_up_once([others, shared]):
        assert find_shared(make(shared)) is shared


def _written(shared: SharedInput) -> KeyedJaggedTensor:
    shared.values.view(-1)[0] += 1
    return keyed(shared)


ALTERED: dict[str, Callable[[SharedInput], KeyedJaggedTensor]] = {
    "other lengths": lambda shared: KeyedJaggedTensor(
        keys=KEYS, lengths=shared.lengths.clone(), values=shared.values
    ),
    "other ids": lambda shared: KeyedJaggedTensor(
        keys=KEYS, lengths=shared.lengths, values=shared.values + 1
    ),
    "other weights": lambda shared: KeyedJaggedTensor(
        keys=KEYS,
        lengths=shared.lengths,
        values=shared.values,
        weights=torch.ones(len(shared.values)),
    ),
    "offsets": lambda shared: KeyedJaggedTensor(
        keys=KEYS,
        offsets=torch.cat([torch.zeros(1), shared.lengths.cumsum(0)]).int(),
        values=shared.values,
    ),
    "another number of features": lambda shared: KeyedJaggedTensor(
        keys=["all"], lengths=shared.lengths, values=shared.values
    ),
    "a part": lambda shared: KeyedJaggedTensor(
        keys=KEYS, lengths=shared.lengths[:8], values=shared.values[:11]
    ),
    "features in another order": lambda shared: keyed(shared).permute([1, 0]),
    "written to": _written,
}


@pytest.mark.parametrize("make", ALTERED.values(), ids=ALTERED)
def test_what_a_model_altered_is_not(
    make: Callable[[SharedInput], KeyedJaggedTensor],
) -> None:
    shared = shared_input()
    with torch.inference_mode(), look_up_once([shared]):
        assert find_shared(make(shared)) is None


def test_tensors_that_cannot_tell_whether_they_were_written_to_are_not() -> None:
    with torch.inference_mode():
        shared = shared_input()
        with look_up_once([shared]):
            assert find_shared(keyed(shared)) is None


def test_nothing_is_shared_outside_of_the_call() -> None:
    shared = shared_input()
    with look_up_once([shared]):
        pass
    assert find_shared(keyed(shared)) is None


def test_nothing_is_shared_after_a_call_that_raised() -> None:
    shared = shared_input()
    message = "the model raised"
    with pytest.raises(ValueError, match=message), look_up_once([shared]):
        raise ValueError(message)
    assert find_shared(keyed(shared)) is None
