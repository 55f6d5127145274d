"""Linear layers, each by the kernel that is fastest on this processor for the rows at hand.

Shapes: B rows, K inputs and N outputs of a layer.
"""

from collections.abc import Sequence

import torch

from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.products import (
    INT8_ROWS,
    PACKED,
    Compute,
    Layer,
    behind,
    float32,
    is_fast,
    least_rows,
)
from torchrec_handler.options import PRECISIONS, DenseDtype, KernelDtype

FEW_ROWS = 12
"""With fewer rows oneDNN needs longer to prepare a call than FBGEMM for the whole of it."""

BLOCK_ROWS = 1024
"""What goes through all layers together; more would leave the caches between them."""

LARGEST_FLOAT16 = 65_504.0


class Layers:
    """Linear layers behind each other: [..., K] of any floating point type -> [..., N] float32.

    It shares the weights with the module they are from, and keeps a packed copy for each kernel:
    4 bytes a weight for float32, 4 for bfloat16, 5 for int8, of which 2 are for few rows.
    """

    def __init__(
        self, layers: Sequence[Layer], dtype: KernelDtype, choice: Choice | None = None
    ) -> None:
        """Pack the weights.

        Args:
            layers: at least one.
            dtype: the least precise type to compute in. A more precise one is taken where it is
                faster, and where the processor or the build has no kernel for this one.
            choice: that of each layer, instead.
        """
        self._is_one = len(layers) == 1
        self.limits: list[KernelDtype] = []
        """The least precise type that each layer may compute in."""
        self.dtype: DenseDtype
        """The least precise type that is computed in here."""
        self.few: Compute
        """The kernel of less than `FEW_ROWS` rows, for who calls several one behind another."""
        self._kernels: list[tuple[int, Compute]]
        """The fewest rows each kernel is for, most first."""
        self.layers: Sequence[Layer] = ()
        """What they are, where the choice may be changed."""
        self._pack(layers, [choice.of(one.sources) if choice else dtype for one in layers])
        if choice and choice.is_open:
            self.layers, self._choice = layers, choice
            choice.watching.add(self)

    def choose(self) -> None:
        """See `Chosen`."""
        limits = [self._choice.of(one.sources) for one in self.layers]
        if limits != self.limits:
            self._pack(self.layers, limits)

    def _pack(self, layers: Sequence[Layer], limits: list[KernelDtype]) -> None:
        self.limits = limits
        packed: Packed = {}
        plan = _plan(layers, limits)
        self.dtype = max(set().union(*plan.values()), key=PRECISIONS.index)
        self._kernels = [
            (least, _compute(layers, plan[least], packed, are_few=least == 0))
            for least in sorted(plan, reverse=True)
        ]
        self.few = self._kernels[-1][1]

    def __call__(
        self,
        input: torch.Tensor,  # noqa: A002  as Linear and MLP name it
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute, whatever the number of rows; with another bias [N] of the first layer."""
        x = input
        if x.dim() != 2:
            y = self(x.reshape(-1, x.shape[-1]), bias)
            return y.view(*x.shape[:-1], y.shape[1])
        rows = x.shape[0]
        kernel = next(kernel for least, kernel in self._kernels if rows >= least)
        if rows <= BLOCK_ROWS or self._is_one:
            return kernel(x, bias).float()
        return torch.cat([kernel(block, bias).float() for block in torch.split(x, BLOCK_ROWS)])


Packed = dict[tuple[int, DenseDtype], Compute]
"""Position of a layer and type -> it, packed alone."""


def _plan(
    layers: Sequence[Layer], limits: Sequence[KernelDtype]
) -> dict[int, tuple[DenseDtype, ...]]:
    """The fewest rows -> the type that each layer computes in from there on."""
    lowered = [one for one, limit in zip(layers, limits, strict=True) if limit != "float32"]
    fit = all(float(layer.weight.abs().max()) <= LARGEST_FLOAT16 for layer in lowered)
    few: DenseDtype = "float16" if lowered and fit and is_fast("float16") else "float32"
    plan: dict[int, tuple[DenseDtype, ...]]
    plan = {0: tuple("float32" if limit == "float32" else few for limit in limits)}
    if set(limits) == {"float32"} and is_fast("float32"):
        plan[min(least_rows(layer, "float32") for layer in layers)] = plan[0]
    lower: tuple[tuple[int, KernelDtype, tuple[KernelDtype, ...]], ...]
    lower = (FEW_ROWS, "bfloat16", ("bfloat16", "int8")), (INT8_ROWS, "int8", ("int8",))
    for least, dtype, of in lower:
        if any(limit in of for limit in limits) and is_fast(dtype):
            before = plan[max(plan)]
            plan[least] = tuple(
                dtype if limit in of else one for one, limit in zip(before, limits, strict=True)
            )
    return plan


def _compute(
    layers: Sequence[Layer], dtypes: Sequence[DenseDtype], packed: Packed, *, are_few: bool
) -> Compute:
    """Layers behind each other, each in its type."""
    if set(dtypes) == {"float32"} and are_few:
        return float32(layers)
    if len(set(dtypes)) == 1:
        return PACKED[dtypes[0]](layers)
    for key, layer in zip(enumerate(dtypes), layers, strict=True):
        if key not in packed:
            dtype = key[1]
            has_kernel = dtype != "float32" or is_fast(dtype)
            packed[key] = PACKED[dtype]([layer]) if has_kernel else float32([layer])
    return behind([packed[key] for key in enumerate(dtypes)])
