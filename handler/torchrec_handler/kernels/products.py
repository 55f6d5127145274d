"""The kernels of linear layers, by data type, and whether this processor has them.

Weights are packed once, when a model is loaded. Shapes: B rows, K inputs and N outputs of a layer.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import fbgemm_gpu  # noqa: F401  brings torch.ops.fbgemm
import torch

from torchrec_handler.options import DenseDtype, KernelDtype

logger = logging.getLogger(__name__)

INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "bfloat16": ("amx_bf16", "avx512_bf16"),
    "int8": ("amx_int8", "avx512_vnni", "avx_vnni"),
}
"""Data type -> what the processor needs one of: without it float16 is faster, and int8 wrong.

A dense part in float16 has no packed layers, as TorchRec's `quantize_dense` converts it; here
float16 weights are what bfloat16 and int8 take for few rows, and on processors without these."""

INT8_ROWS = 64
"""With fewer rows finding each row's scale costs more than int8 gains."""

PACKED_WEIGHTS = 2**12
"""A layer with fewer stays as it is: preparing another kernel's call would cost more."""

INT8_WEIGHTS = 2**15
"""A layer with fewer is no faster in int8. Most often it is one that takes the model's own inputs,
whose sizes differ as those of a layer's outputs do not."""

WORK: dict[str, int] = {"float32": 2**22, "bfloat16": 3 * 2**20, "int8": 2**24}
"""Rows times weights of a layer from which on packed weights are faster than what else there is:
preparing a call of oneDNN takes some 15 us, and int8 reads and writes its numbers once more."""

SCALE_BYTES = 8
"""FBGEMM puts a row's scale and its least value, each float32, behind the row's bytes."""


Call = Callable[[torch.Tensor], torch.Tensor]
"""[B, N] -> [B, N]"""


class Compute(Protocol):
    """Layers in one data type."""

    def __call__(self, x: torch.Tensor, other: torch.Tensor | None = None, /) -> torch.Tensor:
        """[B, K], and [N] for the first layer's bias -> [B, N], of any floating point type."""


class Activation(NamedTuple):
    """What is done to each number that a layer gives."""

    call: Call
    """In place where torch can."""
    name: str
    """As oneDNN calls it, which does it in the same pass."""
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


class Layer(NamedTuple):
    """A linear layer and the activation behind it, if there is one."""

    weight: torch.Tensor
    """[N, K] float32, on the CPU."""
    bias: torch.Tensor
    """[N] float32."""
    activation: Activation | None = None
    sources: tuple[torch.Tensor, ...] = ()
    """The parameters that its weight is made of."""


RELU = Activation(call=torch.relu_, name="relu")


def half_precision(dtype: KernelDtype) -> torch.dtype:
    """What products that are not a layer's may be computed in."""
    allowed = dtype in {"bfloat16", "int8"} and is_fast("bfloat16")
    return torch.bfloat16 if allowed else torch.float32


@cache
def is_fast(dtype: DenseDtype) -> bool:
    """Whether processor and build have the kernel for it; it is tried on a small layer.

    Of so many rows that no other kernel takes them.
    """
    capabilities = torch.cpu.get_capabilities()
    if dtype in INSTRUCTIONS and not any(map(capabilities.get, INSTRUCTIONS[dtype])):
        return False
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 256, generator=random)
    x = torch.randn(max(WORK.values()) // weight.numel() + 2, 256, generator=random)
    layers = [Layer(weight=weight / 16, bias=torch.ones(128))]
    try:
        error = (PACKED[dtype](layers)(x).float() - float32(layers)(x)).abs().max()
    except (AttributeError, NotImplementedError, RuntimeError) as failure:
        logger.warning("dense layers: no kernel for %s here: %s", dtype, failure)
        return False
    # Of sums around 1.
    return float(error) < 0.1


def float32(layers: Sequence[Layer]) -> Compute:
    """What torch.nn.Linear does; of one row a product with a vector, which reads weights faster."""
    parts = [(layer.weight, layer.weight.t(), layer.bias, _call(layer)) for layer in layers]
    addmv, addmm = torch.addmv, torch.addmm

    def run(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = x.float()
        if x.shape[0] == 1:
            x = x.view(-1)
            for weight, _, bias, activation in parts:
                x = addmv(bias if other is None else other, weight, x)
                other = None
                if activation:
                    x = activation(x)
            return x.unsqueeze(0)
        for _, transposed, bias, activation in parts:
            x = addmm(bias if other is None else other, x, transposed)
            other = None
            if activation:
                x = activation(x)
        return x

    return run


def _float16(layers: Sequence[Layer]) -> Compute:
    """FBGEMM's: weights in float16, all else in float32.

    By torch's older names: the newer ones take packed weights as a script object, and handing one
    over from python takes ten times as long as a small layer.
    """
    linear = torch.fbgemm_linear_fp16_weight_fp32_activation
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fbgemm_.* is deprecated", UserWarning)
        parts = [
            (torch.fbgemm_pack_gemm_matrix_fp16(layer.weight), layer.bias, _call(layer))
            for layer in layers
        ]
        # It says so at its first call only.
        linear(layers[0].weight[:1], *parts[0][:2])

    def run(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = x.float()
        for packed, bias, activation in parts:
            x = linear(x, packed, bias if other is None else other)
            other = None
            if activation:
                x = activation(x)
        return x

    return run


def least_rows(layer: Layer, dtype: KernelDtype) -> int:
    """From how many rows on packed weights of a type pay."""
    return max(2, WORK[dtype] // layer.weight.numel())


def _call(layer: Layer) -> Call | None:
    return layer.activation.call if layer.activation else None


def _each(pack: Callable[[Layer], Compute], layers: Sequence[Layer]) -> Compute:
    return behind([pack(layer) for layer in layers])


def behind(kernels: Sequence[Compute]) -> Compute:
    """One behind another; another bias is the first one's."""
    first, *rest = kernels

    def run(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = first(x, other)
        for kernel in rest:
            x = kernel(x)
        return x

    return run


def _onednn(dtype: torch.dtype, layer: Layer) -> Compute:
    """oneDNN's, with weights in the order it reads them in and the activation in the same pass."""
    if layer.weight.numel() < PACKED_WEIGHTS:
        return float32([layer])
    linear = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001  torch.compile's own
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype))  # noqa: SLF001
    bias = layer.bias.to(dtype)
    least = least_rows(layer, "float32" if dtype == torch.float32 else "bfloat16")
    plain = float32([layer])
    name, scalars, algorithm = layer.activation[1:] if layer.activation else ("none", (), "")

    def run(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[0] < least:
            return plain(x, other)
        added = bias if other is None else other.to(dtype)
        y: torch.Tensor = linear(x.to(dtype), packed, added, name, scalars, algorithm)
        return y

    return run


def _int8(layer: Layer) -> Compute:
    """Weights with a scale an output; x with a scale and a least value a row, found as it comes.

    So no row's result depends on the rows beside it. x = scale * q + least, hence
    x @ W = scale * (q @ W) + least * (the sum of W's rows).
    """
    if layer.weight.numel() < INT8_WEIGHTS:
        return _onednn(half_precision("int8"), layer)
    few = least_rows(layer, "int8")
    of_few = _onednn(half_precision("int8"), layer) if few > INT8_ROWS else None
    linear = torch.ops.onednn.qlinear_pointwise.default
    quantize = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized.default
    weight, bias = layer[:2]
    activation = _call(layer)
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    rounded = (weight / scales.unsqueeze(1)).round()
    sums = rounded.sum(1) * scales
    # The bytes behind each row of q meet weights of zero, so q goes in as FBGEMM writes it.
    padded = torch.nn.functional.pad(rounded.to(torch.int8), (0, SCALE_BYTES))
    packed = torch.ops.onednn.qlinear_prepack(padded, None)
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    rest: tuple[Any, ...]
    rest = (packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")

    def run(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if of_few and x.shape[0] < few:
            return of_few(x, other)
        q = quantize(x.float().contiguous())
        row = q[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
        y: torch.Tensor = linear(q, 1.0, 0, *rest)
        scale, least = row[:, :1], row[:, 1]
        y = torch.addcmul(bias if other is None else other, y, scale, out=y)
        # Behind a ReLU the least value is 0 as a rule.
        if bool(least.any()):
            y = y.addr_(least, sums)
        return activation(y) if activation else y

    return run


PACKED: Mapping[str, Callable[[Sequence[Layer]], Compute]] = {
    "float32": partial(_each, partial(_onednn, torch.float32)),
    "float16": _float16,
    "bfloat16": partial(_each, partial(_onednn, torch.bfloat16)),
    "int8": partial(_each, _int8),
}
