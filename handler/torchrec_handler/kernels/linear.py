"""Linear layers, and the ReLU between them, in one call: the kernel of packed layers."""

from collections.abc import Iterable
from typing import Any

import torch

from torchrec_handler.kernels.kernel import Forward, Target, not_for, touched, typename
from torchrec_handler.kernels.packed import Layers
from torchrec_handler.kernels.products import RELU, Layer

RELUS = (torch.relu, torch.nn.functional.relu)


class LinearKernel:
    """Linear, Perceptron, MLP, DLRM's DenseArch and OverArch, and a Sequential of such layers."""

    name = "linear"

    def offer(self, module: torch.nn.Module, target: Target) -> Forward | str | None:
        """See `Kernel`."""
        layers = layers_of(module)
        if isinstance(layers, str):
            return layers
        if not layers:
            return None
        if why := not_for(target):
            return why
        packed = Layers(layers, target.dtype, target.choice)
        return Forward(call=packed, dtype=packed.dtype)


def layers_of(module: Any) -> list[Layer] | str | None:
    """The linear layers that a module is, one behind another.

    Returns:
        Why it cannot be taken so, for a module that is of layers; None for anything else.
    """
    match typename(module):
        case "torch.nn.modules.linear.Linear":
            if "weight" not in dict(module.named_parameters(recurse=False)):
                return "its weight is computed anew at each call"
            return why_not_plain(module) or [layer(module.weight, module.bias)]
        case "torchrec.modules.mlp.Perceptron":
            linear, activation = module._linear, module._activation_fn  # noqa: SLF001
            name = getattr(activation, "__name__", type(activation).__name__)
            return chain([linear, activation]) or (
                f"computes {type(linear).__name__} and {name}, expected Linear, and ReLU or none"
            )
        case "torchrec.modules.mlp.MLP":
            parts: Iterable[Any] = [module._mlp]  # noqa: SLF001
        case "torchrec.models.dlrm.DenseArch" | "torchrec.models.dlrm.OverArch":
            parts = [module.model]
        case "torch.nn.modules.container.Sequential":
            parts = module
        case _:
            return None
    return chain(parts)


def chain(parts: Iterable[Any]) -> list[Layer] | str | None:
    """The layers of several modules and functions, one behind another; see `layers_of`."""
    layers: list[Layer] = []
    for part in parts:
        added: list[Layer] | str | None = []
        if layers and (part in RELUS or type(part) is torch.nn.ReLU):
            layers[-1] = layers[-1]._replace(activation=RELU)
        elif type(part) not in {torch.nn.Identity, torch.nn.Dropout}:
            added = layers_of(part)
        if added is None or isinstance(added, str):
            return added
        if isinstance(part, torch.nn.Module) and (why := touched(part)):
            return why
        layers += added
    return layers


def layer(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Layer:
    """A layer of weights [N, K] and [N], which it shares."""
    weight = weight.detach()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return Layer(weight=weight, bias=bias, sources=(weight,))


def why_not_plain(module: torch.nn.Module) -> str | None:
    """What else has lowered a module's parameters; a quantized one has a type of its own."""
    for parameter in module.parameters():
        kind, dtype, device = type(parameter), parameter.dtype, parameter.device
        if kind is not torch.nn.Parameter:
            return f"its weights are of type {kind.__name__}, expected Parameter"
        if dtype != torch.float32 or device.type != "cpu":
            name = str(dtype).removeprefix("torch.")
            return f"its weights are {name} on {device}, expected float32 on the CPU"
    return None
