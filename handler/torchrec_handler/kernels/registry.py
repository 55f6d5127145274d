"""Last step but one of loading: TorchRec's dense modules in fewer and faster calls, on the CPU.

Modules are known by their type's name, as `quantize` knows them, and get another `forward`; they,
their weights and all they hold stay where they are. What is not known here stays as it is.
Shapes: B rows, F features, D width, N columns.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torchrec.inference.modules import trim_torch_package_prefix_from_typename
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.kernels.direct import call_directly
from torchrec_handler.kernels.dlrm import Dlrm
from torchrec_handler.kernels.linear import Layer, Layers, LayersDtype
from torchrec_handler.options import DenseDtype
from torchrec_handler.tables.find import is_collection

Forward = Callable[..., torch.Tensor]

SPARSE_ARCH = "torchrec.models.dlrm.SparseArch"
INTERACTION_ARCH = "torchrec.models.dlrm.InteractionArch"
RELUS = (torch.relu, torch.nn.functional.relu)


def fuse(module: torch.nn.Module, dtype: DenseDtype) -> None:
    """Replace the forward of every module that is known here, the outermost of each nest.

    Args:
        module: ready to serve on the CPU.
        dtype: the least precise type that linear layers, and the products of an interaction, may
            compute in. What they give is float32. With float16 only lookups are called in another
            way: `lower` has given the dense part to TorchRec's `quantize_dense`.
    """
    call_directly(module)
    for found in module.modules():
        if _typename(found) == SPARSE_ARCH:
            _replace(found, SparseArch(found))
    if dtype != "float16":
        _fuse(module, dtype)


def _replace(module: torch.nn.Module, forward: Forward) -> None:
    setattr(module, "forward", forward)  # noqa: B010  this module's own, not its class's


def _fuse(module: torch.nn.Module, dtype: LayersDtype) -> None:
    forward = _forward(module, dtype)
    if forward is not None:
        _replace(module, forward)
        return
    for child in module.children():
        if not is_collection(child):
            _fuse(child, dtype)


def _forward(module: Any, dtype: LayersDtype) -> Forward | None:
    if layers := _layers(module):
        return Layers(layers, dtype)
    match _typename(module):
        case "torchrec.models.dlrm.DLRM":
            return _dlrm(module, dtype)
        case "torchrec.modules.crossnet.LowRankCrossNet" if _is_plain(module):
            return CrossNet(
                [
                    [_layer(down), _layer(up, bias)]
                    for down, up, bias in zip(
                        module.V_kernels, module.W_kernels, module.bias, strict=True
                    )
                ],
                dtype,
            )
        case "torchrec.modules.crossnet.CrossNet" if _is_plain(module):
            return CrossNet(
                [
                    [_layer(kernel, bias.view(-1))]
                    for kernel, bias in zip(module.kernels, module.bias, strict=True)
                ],
                dtype,
            )
    return None


def _dlrm(module: Any, dtype: LayersDtype) -> Forward | None:
    dense, over = _chain([module.dense_arch]), _chain([module.over_arch])
    known = (
        _typename(module.sparse_arch) == SPARSE_ARCH
        and _typename(module.inter_arch) == INTERACTION_ARCH
        and not any(map(_has_hooks, module.sparse_arch.modules()))
        and not _has_hooks(module.inter_arch)
    )
    if not (dense and over and known):
        return None
    return Dlrm(module, dense, over, dtype)


def _layers(module: Any) -> list[Layer] | None:
    """The linear layers that a module is, one behind another; None if it is anything else."""
    match _typename(module):
        # What computes its weight anew at each call has none of its own.
        case "torch.nn.modules.linear.Linear" if _is_plain(module) and "weight" in dict(
            module.named_parameters(recurse=False)
        ):
            return [_layer(module.weight, module.bias)]
        case "torchrec.modules.mlp.Perceptron":
            return _chain([module._linear, module._activation_fn])  # noqa: SLF001
        case "torchrec.modules.mlp.MLP":
            return _chain([module._mlp])  # noqa: SLF001
        case "torchrec.models.dlrm.DenseArch" | "torchrec.models.dlrm.OverArch":
            return _chain([module.model])
        case "torch.nn.modules.container.Sequential":
            return _chain(module)
    return None


def _chain(parts: Iterable[Any]) -> list[Layer] | None:
    layers: list[Layer] = []
    for part in parts:
        if isinstance(part, torch.nn.Module) and _has_hooks(part):
            return None
        if type(part) in {torch.nn.Identity, torch.nn.Dropout}:
            continue
        if layers and (part in RELUS or type(part) is torch.nn.ReLU):
            layers[-1] = layers[-1]._replace(relu=True)
            continue
        added = _layers(part)
        if added is None:
            return None
        layers += added
    return layers


def _layer(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Layer:
    weight = weight.detach()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return Layer(weight=weight, bias=bias, relu=False)


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether nothing else has lowered its parameters; a quantized one has a type of its own."""
    return all(
        type(parameter) is torch.nn.Parameter
        and parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
        for parameter in module.parameters()
    )


def _has_hooks(module: torch.nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001


def _typename(module: object) -> str:
    """The type that a module is known by; none where somebody replaced its own forward."""
    forward = getattr(module, "__dict__", {}).get("forward")
    if forward is not None and not isinstance(forward, SparseArch):
        return ""
    name: str = trim_torch_package_prefix_from_typename(torch.typename(module))
    return name


class SparseArch:
    """Pooled embeddings [B, F, D], not taken apart where they come in the order they are for."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """What SparseArch.forward gives."""
        module = self._module
        found = module.embedding_bag_collection(features)
        names = module.sparse_feature_names
        if found.keys() == names:
            values = found.values()
        else:
            values = torch.cat([found[name] for name in names], dim=1)
        embedded: torch.Tensor = values.reshape(-1, module.F, module.D)
        return embedded


class CrossNet:
    """Deep cross layers: x = x0 * layers(x) + x, [B, N]."""

    def __init__(self, layers: Iterable[Sequence[Layer]], dtype: LayersDtype) -> None:
        self._layers = [Layers(each, dtype) for each in layers]

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """What the cross net's forward gives."""
        x = x0
        for layers in self._layers:
            x = torch.addcmul(x, x0, layers(x))
        return x
