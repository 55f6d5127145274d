"""A kernel is used where the processor has it, and where it gives what torch gives."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from torchrec_handler.kernels import products
from torchrec_handler.kernels.products import Layer, is_fast


@pytest.fixture
def nothing_is_known() -> Iterator[None]:
    """What was found of the kernels before is forgotten."""
    is_fast.cache_clear()
    yield
    is_fast.cache_clear()


@pytest.mark.usefixtures("nothing_is_known")
def test_a_kernel_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As int8 products that saturate do, on a processor without the instructions for them."""

    def wrong(layers: Sequence[Layer]) -> Any:
        return lambda x: torch.zeros(x.shape[0], len(layers[-1].weight))

    monkeypatch.setattr(products, "PACKED", {**products.PACKED, "float32": wrong})
    assert not is_fast("float32")
    assert is_fast("float16")


def test_this_processors_instructions_are_used() -> None:
    """Where it has them; elsewhere more precise layers are right, and slower."""
    capabilities = torch.cpu.get_capabilities()
    for dtype, names in products.INSTRUCTIONS.items():
        assert is_fast(dtype) == any(capabilities.get(name) for name in names)
