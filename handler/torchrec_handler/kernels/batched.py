"""Linear layers of the same sizes side by side, each of inputs of its own, in one product.

Shapes: B rows, E layers, K inputs and N outputs of each.
"""

from collections.abc import Sequence

import torch

from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.packed import Layers
from torchrec_handler.kernels.products import (
    INT8_WEIGHTS,
    WORK,
    Activation,
    Compute,
    Layer,
    half_precision,
    is_fast,
)
from torchrec_handler.options import DenseDtype, KernelDtype


class Batched:
    """E layers: [B, E, K] of any floating point type -> [B, E, N] float32."""

    def __init__(
        self, layers: Sequence[Layer], dtype: KernelDtype, choice: Choice | None = None
    ) -> None:
        """Lower the weights.

        Args:
            layers: E of the same sizes and activation, whose weights are shared.
            dtype: the least precise type to compute in; a more precise one where it is faster.
            choice: of all of them, instead.
        """
        self.layers: Sequence[Layer] = ()
        """What they are, where the choice may be changed."""
        self._limit: KernelDtype = choice.of(layers[0].sources) if choice else dtype
        self.dtype: DenseDtype
        """The least precise type that is computed in here."""
        self._kernels: list[tuple[int, Compute]]
        """The fewest rows each is for, most first."""
        self._pack(layers)
        if choice and choice.is_open:
            self.layers, self._choice = layers, choice
            choice.watching.add(self)

    def choose(self) -> None:
        """See `Chosen`."""
        limit = self._choice.of(self.layers[0].sources)
        if limit != self._limit:
            self._limit = limit
            self._pack(self.layers)

    def _pack(self, layers: Sequence[Layer]) -> None:
        limit = self._limit
        weight = torch.stack([one.weight for one in layers])
        bias = torch.stack([one.bias for one in layers])
        activation = layers[0].activation
        self.dtype = "float32"
        self._kernels = [(0, _product(weight, bias, activation))]
        half = half_precision(limit)
        if half != torch.float32:
            self.dtype = "bfloat16"
            of_half = _product(weight.to(half), bias.to(half), activation)
            self._kernels.insert(0, (WORK["bfloat16"] // weight.numel(), of_half))
        numbers = weight[0].numel()
        if limit == "int8" and is_fast("int8") and numbers >= INT8_WEIGHTS:
            self.dtype = "int8"
            each = [Layers([one], limit) for one in layers]
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
