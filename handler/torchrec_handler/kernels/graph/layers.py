"""Passes over linear layers: batch norms and activations inside, siblings in one.

Shapes: B rows, K inputs and N outputs of a layer.
"""

import operator
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    Sources,
    argument,
    aten,
    is_call,
    sources_of,
    value_of,
)
from torchrec_handler.kernels.products import RELU, Activation

linear = aten.linear.default

ACTIVATION = "activation"
"""In a layer's `meta`: what is done to what it gives."""


class Weights(NamedTuple):
    """Of a layer."""

    weight: torch.Tensor
    """[N, K]"""
    bias: torch.Tensor
    """[N]"""
    sources: Sources = ()
    """What the weight is made of."""


def weights_of(node: Any) -> Weights | None:
    """The weights of a layer that are known, in float32."""
    if not is_call(node, linear):
        return None
    weight, bias = value_of(node.args[1]), argument(node, 2, "bias")
    if weight is None or weight.dtype != torch.float32 or weight.dim() != 2:
        return None
    value = weight.new_zeros(len(weight)) if bias is None else value_of(bias)
    return None if value is None else Weights(weight, value, sources_of(node.args[1]))


def emit_layer(program: Program, x: Node, weights: Weights, activation: Activation | None) -> Node:
    """Add a layer at the place of insertion."""
    weight = program.constant(weights.weight, weights.sources)
    bias = program.constant(weights.bias)
    node = program.emit(linear, x, weight, bias)
    node.meta[ACTIVATION] = activation
    return node


# Batch norms.

BATCH_NORMS = (
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,  # noqa: SLF001  gives it in a tuple
)


def fold_batch_norms(program: Program) -> None:
    """A norm of known scales is part of the layer before it, or else of those behind it."""
    for node in program.nodes:
        is_first = is_call(node, operator.getitem) and node.args[1] == 0
        norm = node.args[0] if is_first else node
        if is_call(norm, BATCH_NORMS[is_first]) and (known := _scale_shift(norm)):
            _fold(program, node, norm.args[0], *known)


def _fold(program: Program, node: Node, x: Node, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Put a norm, which gives `node` of x, into the layers beside it."""
    if node.meta["val"].dim() != 2:
        # What is normed is not the last axis then.
        return
    before = weights_of(x)
    behind = [(user, weights_of(user)) for user in node.users]
    if before and len(x.users) == 1:
        weights = before._replace(
            weight=before.weight * scale.unsqueeze(1), bias=before.bias * scale + shift
        )
        with program.before(node):
            program.replace(node, emit_layer(program, x.args[0], weights, None))
    elif all(given and user.args[0] is node for user, given in behind):
        for user, given in behind:
            if given is None:
                continue
            folded = given._replace(
                weight=given.weight * scale, bias=given.bias + given.weight @ shift
            )
            with program.before(user):
                layer = emit_layer(program, x, folded, user.meta.get(ACTIVATION))
            program.replace(user, layer)
    else:
        with program.before(node):
            terms = program.constant(shift), x, program.constant(scale)
            scaled = program.graph.call_function(aten.addcmul.default, terms)
        scaled.meta["val"] = node.meta["val"]
        program.replace(node, scaled)


def _scale_shift(node: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a norm multiplies by and adds, [N] each, where it is known."""
    parameters = node.args[1:5]
    # Momentum lies before it; only `batch_norm` itself can be of training.
    is_training, epsilon = (False, node.args[6])
    if is_call(node, aten.batch_norm.default):
        is_training, epsilon = node.args[5], node.args[7]
    values = [None if one is None else value_of(one) for one in parameters]
    weight, bias, mean, variance = (None if one is None else one.double() for one in values)
    given = sum(one is not None for one in parameters)
    if (
        is_training
        or mean is None
        or variance is None
        or given != sum(one is not None for one in values)
    ):
        return None
    scale = (variance + epsilon).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    return scale.float(), shift.float()


# Activations.


def fuse_activations(program: Program) -> None:
    """What follows on a layer alone is done by it."""
    for node in program.nodes:
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        x = node.all_input_nodes[0]
        if not weights_of(x) or len(x.users) > 1 or x.meta.get(ACTIVATION):
            continue
        activation = _activation(node)
        if activation and node.args[0] is x:
            x.meta[ACTIVATION] = activation
            program.replace(node, x)


def _activation(node: Node) -> Activation | None:
    made = ACTIVATIONS.get(node.target)
    return made(node) if made else None


def _gelu(node: Node) -> Activation:
    approximate = argument(node, 1, "approximate", "none")
    gelu = functional.gelu

    def call(x: torch.Tensor) -> torch.Tensor:
        return gelu(x, approximate=approximate)

    return Activation(call=call, name="gelu", algorithm=approximate)


def _leaky(slope: float) -> Activation:
    leaky = torch.ops.aten.leaky_relu_.default

    def call(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = leaky(x, slope)
        return y

    return Activation(call=call, name="leaky_relu", scalars=(slope,))


def _prelu(node: Node) -> Activation | None:
    slope = value_of(node.args[1])
    return _leaky(float(slope)) if slope is not None and slope.numel() == 1 else None


ACTIVATIONS: Mapping[Any, Callable[[Node], Activation | None]] = {
    aten.relu.default: lambda _: RELU,
    aten.gelu.default: _gelu,
    aten.silu.default: lambda _: Activation(
        call=lambda x: functional.silu(x, inplace=True), name="swish"
    ),
    aten.sigmoid.default: lambda _: Activation(call=torch.sigmoid_, name="sigmoid"),
    aten.tanh.default: lambda _: Activation(call=torch.tanh_, name="tanh"),
    aten.leaky_relu.default: lambda node: _leaky(argument(node, 1, "negative_slope", 0.01)),
    aten.prelu.default: _prelu,
}


def kind_of(node: Node) -> tuple[Any, ...] | None:
    """What tells a layer's activation from others."""
    activation: Activation | None = node.meta.get(ACTIVATION)
    return activation and tuple(activation[1:])


# Siblings.


def merge_siblings(program: Program) -> None:
    """Layers of the same input and activation are one, whose outputs are cut."""
    groups: dict[Any, list[Node]] = {}
    for node in program.nodes:
        if weights_of(node):
            groups.setdefault((node.args[0], kind_of(node)), []).append(node)
    for (x, _), siblings in groups.items():
        if len(siblings) < 2:
            continue
        found = [weights_of(node) for node in siblings]
        weights = Weights(
            torch.cat([one.weight for one in found if one]),
            torch.cat([one.bias for one in found if one]),
            sources_of(*(node.args[1] for node in siblings)),
        )
        with program.before(siblings[0]):
            whole = emit_layer(program, x, weights, siblings[0].meta.get(ACTIVATION))
            ends = list(accumulate((len(one.bias) for one in found if one), initial=0))
            parts = [
                program.emit(aten.slice.Tensor, whole, -1, start, stop)
                for start, stop in pairwise(ends)
            ]
        for node, part in zip(siblings, parts, strict=True):
            program.replace(node, part)
