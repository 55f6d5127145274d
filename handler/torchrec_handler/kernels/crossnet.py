"""Deep cross layers over packed layers. Shapes: B rows, N columns."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torchrec_handler.kernels.kernel import Forward, Target, not_for, typename
from torchrec_handler.kernels.linear import layer, why_not_plain
from torchrec_handler.kernels.packed import Layers
from torchrec_handler.kernels.products import Layer
from torchrec_handler.options import PRECISIONS


class CrossNetKernel:
    """CrossNet and LowRankCrossNet."""

    name = "crossnet"

    def offer(self, module: torch.nn.Module, target: Target) -> Forward | str | None:
        """See `Kernel`."""
        name = typename(module)
        if name not in LAYERS:
            return None
        if why := not_for(target) or why_not_plain(module):
            return why
        net = CrossNet(LAYERS[name](module), target)
        return Forward(call=net, dtype=net.dtype)


class CrossNet:
    """Deep cross layers: x = x0 * layers(x) + x, [B, N]."""

    def __init__(self, layers: Iterable[Sequence[Layer]], target: Target) -> None:
        self._layers = [Layers(each, target.dtype, target.choice) for each in layers]
        dtypes = [each.dtype for each in self._layers]
        self.dtype = max(dtypes, key=PRECISIONS.index, default=None)

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """What the cross net's forward gives."""
        x = x0
        for layers in self._layers:
            x = torch.addcmul(x, x0, layers(x))
        return x


def _full(module: Any) -> list[list[Layer]]:
    weights = zip(module.kernels, module.bias, strict=True)
    return [[layer(kernel, bias.view(-1))] for kernel, bias in weights]


def _low_rank(module: Any) -> list[list[Layer]]:
    weights = zip(module.V_kernels, module.W_kernels, module.bias, strict=True)
    return [[layer(down), layer(up, bias)] for down, up, bias in weights]


LAYERS = {
    "torchrec.modules.crossnet.CrossNet": _full,
    "torchrec.modules.crossnet.LowRankCrossNet": _low_rank,
}
"""Type -> the layers of each step."""
