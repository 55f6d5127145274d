"""Layers side by side give what each gives, to the rounding of their data type."""

import pytest
import torch

from torchrec_handler.kernels import batched, products
from torchrec_handler.kernels.batched import Batched
from torchrec_handler.kernels.products import RELU, Layer
from torchrec_handler.options import KernelDtype

BOUNDS: dict[KernelDtype, float] = {"float32": 1e-6, "bfloat16": 1e-2, "int8": 3e-2}
LAYERS, OUTPUTS, INPUTS = 3, 64, 80


@pytest.mark.parametrize("is_worth_it", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 13, 70])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_each_layer_has_its_own_inputs(
    dtype: KernelDtype, rows: int, *, is_worth_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_worth_it:
        monkeypatch.setattr(batched, "INT8_WEIGHTS", 0)
        monkeypatch.setattr(products, "INT8_WEIGHTS", 0)
        for name in ("bfloat16", "int8"):
            monkeypatch.setitem(products.WORK, name, 0)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(LAYERS, OUTPUTS, INPUTS, generator=random) * INPUTS**-0.5
    bias = torch.randn(LAYERS, OUTPUTS, generator=random)
    x = torch.randn(rows, LAYERS, INPUTS, generator=random)
    given = x.clone()
    layers = [Layer(*one, RELU) for one in zip(weight, bias, strict=True)]
    received = Batched(layers, dtype)(x)
    expected = (torch.einsum("bek,enk->ben", x.double(), weight.double()) + bias).relu()
    assert received.dtype == torch.float32
    assert torch.equal(x, given)
    bound = BOUNDS[dtype if is_worth_it else "float32"]
    torch.testing.assert_close(received, expected.float(), atol=bound * 4, rtol=0)
