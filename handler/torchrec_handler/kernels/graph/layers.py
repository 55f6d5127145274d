"""Passes over linear layers: batch norms and activations inside, siblings in one, weights packed.

Shapes: B rows, K inputs and N outputs of a layer.
"""

import operator
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from torchrec_handler.kernels.batched import Batched
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
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.packed import RELU, Activation, Layer, Layers
from torchrec_handler.options import PRECISIONS, DenseDtype

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


# Packing.


def join(y: torch.Tensor, user: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Stands for halves of a layer, the candidate's and its user's, until they are packed.

    Args:
        y: [B, ..., N], which may be written to.
        user: [U, ..., N]
        index: [B] the user of each row.
    """
    return added(y, user if user.shape[0] == 1 else user.index_select(0, index))


def added(y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A sum of as many axes, in place of y where it has room for it."""
    pairs = zip(y.shape, other.shape, strict=True)
    return y.add_(other) if all(size in {1, room} for room, size in pairs) else y + other


def side_by_side(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Stands for E layers of the same sizes until they are packed.

    Args:
        x: [B, E, K]
        weight: [E, N, K]
        bias: [E, N]
    """
    return torch.einsum("bek,enk->ben", x, weight) + bias


def pack(program: Program, target: Target) -> DenseDtype:
    """Give every layer of known weights the kernels of `packed`, and chains of them one call.

    Returns:
        The least precise type that is computed in.
    """
    least: DenseDtype = "float32"
    for node in program.nodes:
        if is_call(node, join):
            least = max(least, _pack_halves(program, node, target), key=PRECISIONS.index)
        elif is_call(node, side_by_side):
            least = max(least, _pack_batched(program, node, target), key=PRECISIONS.index)
    for node in program.nodes:
        if not weights_of(node) or (node.users and _continues(node)):
            continue
        chain = [node]
        while _continues(chain[0].args[0]):
            chain.insert(0, chain[0].args[0])
        found = [weights_of(one) for one in chain]
        layers = [
            Layer(one.weight, one.bias, layer.meta.get(ACTIVATION), one.sources)
            for one, layer in zip(found, chain, strict=True)
            if one
        ]
        packed_layers = Layers(layers, target.dtype, target.choice)
        least = max(least, packed_layers.dtype, key=PRECISIONS.index)
        with program.before(node):
            packed = program.graph.call_function(_function(packed_layers), (chain[0].args[0],))
            packed.meta |= node.meta
        program.replace(node, packed)
        for one in reversed(chain[:-1]):
            program.graph.erase_node(one)
    return least


def _pack_batched(program: Program, node: Node, target: Target) -> DenseDtype:
    x, weight, bias = node.args
    activation, sources = node.meta.get(ACTIVATION), sources_of(weight)
    layers = [
        Layer(*one, activation, sources)
        for one in zip(weight.meta["constant"], bias.meta["constant"], strict=True)
    ]
    batched = Batched(layers, target.dtype, target.choice)
    with program.before(node):
        packed = program.graph.call_function(_function(batched), (x,))
    packed.meta |= node.meta
    program.replace(node, packed)
    return batched.dtype


def _pack_halves(program: Program, node: Node, target: Target) -> DenseDtype:
    """Let the user's half be the bias of the candidate's, where there is one user."""
    y, user, index = node.args
    weights, activation = weights_of(y), node.meta.get(ACTIVATION)
    if weights is None or len(y.users) > 1:
        packed = _joined(None, None, activation)
        given = y
        least: DenseDtype = "float32"
    else:
        layer = Layer(weights.weight, weights.bias, activation, weights.sources)
        of_one = of_more = Layers([layer], target.dtype, target.choice)
        if activation:
            plain = layer._replace(activation=None)
            of_more = Layers([plain], target.dtype, target.choice)
        packed = _joined(of_one, of_more, activation)
        given, least = y.args[0], of_one.dtype
    with program.before(node):
        made = program.graph.call_function(packed, (given, user, index))
    made.meta |= node.meta
    program.replace(node, made)
    if not y.users:
        program.graph.erase_node(y)
    return least


def _joined(
    of_one: Layers | None, of_more: Layers | None, activation: Activation | None
) -> Callable[..., torch.Tensor]:
    """Both halves and the activation: for one user, and for more; of None the half is given."""
    call = activation.call if activation else None

    def joined(x: torch.Tensor, user: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if of_one and user.dim() == 2 and user.shape[0] == 1:
            return of_one(x, user.view(-1))
        y = join(of_more(x) if of_more else x, user, index)
        return call(y) if call else y

    return joined


def _function(layers: Layers | Batched) -> Callable[[torch.Tensor], torch.Tensor]:
    """Code that is made of a graph names functions."""

    def packed(x: torch.Tensor) -> torch.Tensor:
        return layers(x)

    return packed


def _continues(node: Any) -> bool:
    """Whether a layer is read by another layer alone."""
    if not weights_of(node) or len(node.users) != 1:
        return False
    (user,) = node.users
    return weights_of(user) is not None and user.args[0] is node
