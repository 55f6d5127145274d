"""A layer over a cat is a sum of smaller ones: what repeats or recurs in the cat is computed once.

W (a, b, a - b) = (Wa + Wc) a + (Wb - Wc) b; and what a cat holds for L places alike, a product of
one place gives. Shapes: B rows, L places, N outputs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from torchrec_handler.kernels.graph.clean import axis_of
from torchrec_handler.kernels.graph.layers import (
    ACTIVATION,
    Weights,
    emit_layer,
    weights_of,
)
from torchrec_handler.kernels.graph.packing import added
from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    argument,
    aten,
    is_call,
    is_tensor,
)
from torchrec_handler.kernels.products import Activation

Term = tuple[Node, torch.Tensor]
"""What a layer reads [..., K], and its columns of the weight [N, K]."""


def split_cats(program: Program) -> None:
    """Split layers over cats whose pieces repeat or recur."""
    for node in program.nodes:
        weights = weights_of(node)
        pieces = pieces_of(node.args[0]) if weights else None
        if not weights or not pieces:
            continue
        bases = [_base(piece) for piece in pieces]
        terms: dict[Node, torch.Tensor] = {}
        for piece, column in zip(pieces, columns_of(program, pieces, weights), strict=True):
            for source, part in _terms(program, piece, column, bases):
                terms[source] = terms[source] + part if source in terms else part
        groups: dict[Any, list[Term]] = {}
        for source, part in terms.items():
            groups.setdefault(program.shape(source)[:-1], []).append((source, part))
        if len(groups) > 1 or len(terms) < len(pieces):
            full = program.shape(node)[:-1]
            ordered = sorted(groups, key=lambda shape: shape != full)
            with program.before(node):
                new = sum_of_layers(program, node, [groups[one] for one in ordered], weights)
            program.replace(node, new)


def pieces_of(x: Any) -> list[Node] | None:
    """What a tensor is put together of along its last axis."""
    if not is_call(x, aten.cat.default):
        return None
    axis = axis_of(x, argument(x, 1, "dim", 0))
    return list(x.args[0]) if axis == x.meta["val"].dim() - 1 else None


def columns_of(program: Program, pieces: list[Node], weights: Weights) -> list[torch.Tensor]:
    """Of each piece of a layer's input, its columns of the weight."""
    widths = [program.shape(piece)[-1] for piece in pieces]
    return list(torch.split(weights.weight, widths, dim=1))


def sum_of_layers(program: Program, node: Node, groups: list[list[Term]], weights: Weights) -> Node:
    """Add layers, one a group, and the sum of what they give, broadcast to the first of them."""
    parts = []
    for position, terms in enumerate(groups):
        sources = [source for source, _ in terms]
        x = sources[0] if len(sources) == 1 else program.emit(aten.cat.default, sources, -1)
        weight = torch.cat([part for _, part in terms], dim=1).contiguous()
        bias = weights.bias if position == 0 else torch.zeros_like(weights.bias)
        own = weights._replace(weight=weight, bias=bias)
        parts.append(emit_layer(program, x, own, None))
    if len(parts) == 1:
        parts[0].meta[ACTIVATION] = node.meta.get(ACTIVATION)
        return parts[0]
    total = program.graph.call_function(joiner(node.meta.get(ACTIVATION)), tuple(parts))
    total.meta["val"] = node.meta["val"]
    return total


def joiner(activation: Activation | None) -> Callable[..., torch.Tensor]:
    """The sum of tensors, and the activation behind it."""
    call = activation.call if activation else None

    def joined(y: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            y = added(y, other)
        return call(y) if call else y

    return joined


def _terms(
    program: Program, piece: Node, column: torch.Tensor, bases: list[Node]
) -> Iterator[Term]:
    """What a piece is a sum of, where its parts are pieces too."""
    is_sum, is_difference = is_call(piece, aten.add.Tensor), is_call(piece, aten.sub.Tensor)
    if (is_sum or is_difference) and not piece.kwargs:
        left, right = (_base(one) for one in piece.args[:2])
        if left in bases and right in bases and _is_as_wide(program, piece, left, right):
            yield left, column
            yield right, column if is_sum else -column
            return
    yield _base(piece), column


def _is_as_wide(program: Program, piece: Node, *parts: Node) -> bool:
    width = program.shape(piece)[-1]
    return all(program.shape(part)[-1] == width for part in parts)


def _base(node: Any) -> Any:
    """What is repeated along axes between the first and the last."""
    if not is_tensor(node):
        return node
    if is_call(node, aten.expand.default, aten.expand_as.default, aten.repeat.default):
        source = node.args[0]
        shape, wide = source.meta["val"].shape, node.meta["val"].shape
        if len(shape) == len(wide) and shape[-1] == wide[-1] and _is_repeated(shape, wide):
            return _base(source)
    return node


def _is_repeated(shape: Any, wide: Any) -> bool:
    return all(
        isinstance(one, int) and one == 1
        for one, other in zip(shape[1:-1], wide[1:-1], strict=True)
        if str(one) != str(other)
    ) and str(shape[0]) == str(wide[0])
