"""What a batch may hold: the smallest requests first, the rest refused at once."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import DENSE, EMBEDDING, SPARSE, WEIGHTED, examples
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.options import Limits
from torchrec_handler.serve.budget import Budget, size_of_arguments
from torchrec_handler.serve.measure import Size

LIMITS = Limits(rows_per_batch=100, ids_per_batch=1_000)

sizes_of_requests = st.lists(st.builds(Size, st.integers(1, 150), st.integers(0, 1_500)))


def refusals(*sizes: tuple[int, int], limits: Limits = LIMITS) -> dict[int, str]:
    found = Budget(limits).refusals([Size(*size) for size in sizes])
    return {position: str(refusal) for position, refusal in found.items()}


class TestBudget:
    def test_takes_what_fits(self) -> None:
        assert refusals((60, 0), (40, 1_000)) == {}

    def test_the_defaults_take_sixteen_requests_of_a_thousand_rows(self) -> None:
        assert refusals(*[(1_000, 26_000)] * 16, limits=Limits()) == {}

    def test_the_defaults_take_the_largest_request_beside_single_rows(self) -> None:
        assert refusals((16_384, 1_048_576), *[(1, 260)] * 63, limits=Limits()) == {}

    def test_takes_the_smallest_first(self) -> None:
        assert refusals((90, 0), (1, 0), (30, 0), (50, 0)) == {
            0: (
                "received 90 rows beside 81 of other requests, expected at most 100 together "
                "(limits.rows_per_batch); try again"
            )
        }

    def test_counts_ids_too(self) -> None:
        """Many ids in one row are no small request."""
        assert refusals((1, 990), (10, 10), (10, 10)) == {
            0: (
                "received 990 ids beside 20 of other requests, expected at most 1000 together "
                "(limits.ids_per_batch); try again"
            )
        }

    def test_takes_a_request_that_alone_is_too_much(self) -> None:
        assert list(refusals((200, 0))) == []
        assert list(refusals((200, 0), (300, 0))) == [1]

    @examples()
    @given(sizes=sizes_of_requests)
    def test_what_is_taken_fits_and_one_always_is(self, sizes: list[Size]) -> None:
        refused = Budget(LIMITS).refusals(sizes)
        taken = [size for position, size in enumerate(sizes) if position not in refused]
        assert len(taken) >= min(len(sizes), 1)
        if len(taken) > 1:
            assert sum(size.rows for size in taken) <= LIMITS.rows_per_batch
            assert sum(size.ids for size in taken) <= LIMITS.ids_per_batch


def size(arguments: Mapping[str, object], *inputs: InputSignature) -> Size:
    signature = Signature(inputs=inputs, methods={}, result_metadata="dict_of_tensor")
    return size_of_arguments(arguments, signature)


class TestSizeOfArguments:
    """Of methods that are called with keyword arguments."""

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, Size(1, 0)),
            ({"k": 10, "name": "a name", "options": {"a": 1, "b": 2}}, Size(1, 0)),
            ({"movies": [[1, 2]] * 7, "users": [1, 2]}, Size(7, 0)),
            ({"scale": torch.tensor(1.0)[None], "block": torch.zeros(5, 3)}, Size(5, 0)),
        ],
        ids=["nothing", "no lists", "lists", "tensors"],
    )
    def test_the_longest_argument_is_the_rows(
        self, arguments: Mapping[str, object], expected: Size
    ) -> None:
        assert size(arguments, DENSE, SPARSE) == expected

    def test_of_tensors_called_like_the_models_inputs(self) -> None:
        arguments = {
            DENSE.name: torch.zeros(4, 3),
            f"{SPARSE.name}.lengths": torch.zeros(3 * 5),
            f"{SPARSE.name}.values": [0] * 70,
            f"{WEIGHTED.name}.weights": np.zeros(20),
            EMBEDDING.name: torch.zeros(2, 6, 4),
        }
        assert size(arguments, DENSE, SPARSE, WEIGHTED, EMBEDDING) == Size(6, 90)

    def test_of_nonsense(self) -> None:
        arguments: Mapping[str, object] = {EMBEDDING.name: [], f"{SPARSE.name}.lengths": None}
        assert size(arguments, SPARSE, EMBEDDING) == Size(1, 0)
