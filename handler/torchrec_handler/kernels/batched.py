"""Linear layers of the same sizes side by side, each of inputs of its own, in one product.

Shapes: B rows, E layers, K inputs and N outputs of each.
"""

import torch

from torchrec_handler.kernels.packed import (
    INT8_WEIGHTS,
    WORK,
    Activation,
    Compute,
    Layer,
    Layers,
    half_precision,
    is_fast,
)
from torchrec_handler.options import DenseDtype, KernelDtype


class Batched:
    """E layers: [B, E, K] of any floating point type -> [B, E, N] float32."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: Activation | None,
        dtype: KernelDtype,
    ) -> None:
        """Lower the weights.

        Args:
            weight: [E, N, K] float32, which is shared.
            bias: [E, N] float32.
            activation: behind each.
            dtype: the least precise type to compute in; a more precise one where it is faster.
        """
        numbers = weight[0].numel()
        self.dtype: DenseDtype = "float32"
        """The least precise type that is computed in here."""
        self._kernels: list[tuple[int, Compute]] = [(0, _product(weight, bias, activation))]
        """The fewest rows each is for, most first."""
        half = half_precision(dtype)
        if half != torch.float32:
            self.dtype = "bfloat16"
            of_half = _product(weight.to(half), bias.to(half), activation)
            self._kernels.insert(0, (WORK["bfloat16"] // weight.numel(), of_half))
        if dtype == "int8" and is_fast("int8") and numbers >= INT8_WEIGHTS:
            self.dtype = "int8"
            each = [
                Layers([Layer(*one, activation)], dtype) for one in zip(weight, bias, strict=True)
            ]
            self._kernels.insert(0, (WORK["int8"] // numbers, _one_by_one(each)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Compute, whatever the number of rows."""
        rows = x.shape[0]
        kernel = next(kernel for least, kernel in self._kernels if rows >= least)
        return kernel(x)


def _product(weight: torch.Tensor, bias: torch.Tensor, activation: Activation | None) -> Compute:
    turned, added, dtype = weight.transpose(1, 2), bias.unsqueeze(1), weight.dtype
    call = activation.call if activation else None

    def run(x: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.baddbmm(added, x.to(dtype).transpose(0, 1), turned).transpose(0, 1).float()
        return call(y) if call else y

    return run


def _one_by_one(layers: list[Layers]) -> Compute:
    def run(x: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
        return torch.stack([layer(x[:, at]) for at, layer in enumerate(layers)], 1)

    return run
