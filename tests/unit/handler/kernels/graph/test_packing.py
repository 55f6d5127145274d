"""What packed layers of a graph do beside their products."""

import pytest
import torch

from torchrec_handler.kernels.graph.packing import added


@pytest.mark.parametrize(
    ("shape", "other"),
    [((7, 3, 2), (7, 1, 2)), ((7, 3, 2), (1, 1, 2)), ((7, 1, 2), (1, 3, 2)), ((7, 2), (7, 2))],
)
def test_sums_are_in_place_where_there_is_room(
    shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    """Also where the first has more numbers, but not along each axis."""
    y, added_to_it = torch.randn(shape), torch.randn(other)
    expected = y + added_to_it
    found = added(y, added_to_it)
    assert torch.equal(found, expected)
    assert (found is y) == (expected.shape == y.shape)
