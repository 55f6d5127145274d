"""The last pass: layers of known weights, halves and layers side by side get packed kernels.

Shapes: B rows, U users, E layers side by side, K inputs and N outputs of a layer.
"""

from collections.abc import Callable
from typing import Any

import torch

from torchrec_handler.kernels.batched import Batched
from torchrec_handler.kernels.graph.layers import ACTIVATION, weights_of
from torchrec_handler.kernels.graph.program import Node, Program, is_call, sources_of
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.packed import Layers
from torchrec_handler.kernels.products import Activation, Layer
from torchrec_handler.options import PRECISIONS, DenseDtype


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
