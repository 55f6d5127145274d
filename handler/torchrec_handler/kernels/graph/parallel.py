"""A pass over what is done alike to parts of one tensor: experts, gates, towers. It is done once.

Parts are what merged layers are cut into, or what one of these products gives: nothing is copied
to put them together. Shapes: B rows, E parts, K inputs and N outputs of a layer, H of an expert.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from torchrec_handler.kernels.graph.clean import part_of
from torchrec_handler.kernels.graph.layers import ACTIVATION, kind_of, weights_of
from torchrec_handler.kernels.graph.packing import side_by_side
from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    argument,
    aten,
    is_call,
    is_tensor,
    sources_of,
)

Pair = tuple[Any, Any]
"""Weights [B, E] and what they are of [B, E, H]."""
Parts = list[Node]
"""Of one tensor, in order."""


def join_parallel(program: Program) -> None:
    """Do once what is done alike to all parts of a tensor, as long as there is any of it."""
    _know_sums(program)
    while any(_join(program, source) for source in program.nodes):
        program.sort()


def _join(program: Program, source: Node) -> bool:
    """Join the readers of a tensor's parts, as far as they are alike; whether any are."""
    parts = _parts(program, source)
    if len(parts) < 2:
        return False
    for kind, make in ALIKE:
        readers = [{kind(user): user for user in part.users} for part in parts]
        for one in readers[0]:
            if one is not None and all(one in others for others in readers):
                members = [others[one] for others in readers]
                with program.before(program.output):
                    made = make(program, _whole(program, source, parts), members)
                    for at, member in enumerate(members):
                        program.replace(member, program.emit(aten.select.int, made, 1, at))
                return True
    for stack in parts[0].users:
        if is_call(stack, aten.stack.default) and list(stack.args[0]) == parts:
            with program.before(stack):
                whole = _whole(program, source, parts)
                axis = argument(stack, 1, "dim", 0) % 3
                program.replace(stack, program.emit(aten.transpose.int, whole, 1, axis))
            return True
    return False


# Parts.


def _parts(program: Program, source: Node) -> Parts:
    """The parts [B, K] that all of a tensor [B, E * K] or [B, E, K] is cut into."""
    shape = program.shape(source) if is_tensor(source) else ()
    found: dict[int, Node] = {}
    if len(shape) == 3:
        for user in source.users:
            if is_call(user, aten.select.int) and user.args[1] in {1, -2}:
                found[user.args[2]] = user
        is_all = isinstance(shape[1], int) and {*found} == {*range(shape[1])}
        return [found[at] for at in sorted(found)] if is_all else []
    if len(shape) == 2:
        for user in source.users:
            part = part_of(program, user)
            if part and part.axis == 1:
                found[part.start] = user
    if not found:
        return []
    starts = sorted(found)
    widths = {stop - start for start, stop in pairwise([*starts, shape[1]])}
    parts = [found[start] for start in starts]
    is_all = starts[0] == 0 and {program.shape(part)[1] for part in parts} == widths
    return parts if is_all and len(widths) == 1 else []


def _whole(program: Program, source: Node, parts: Parts) -> Node:
    """All parts [B, E, K], as they lie."""
    if source.meta["val"].dim() == 3:
        return source
    width = program.shape(parts[0])[-1]
    return program.emit(aten.unflatten.int, source, -1, [len(parts), width])


# Layers.


def _layer_kind(node: Node) -> Any:
    weights = weights_of(node)
    return (tuple(weights.weight.shape), kind_of(node)) if weights else None


def _layers(program: Program, whole: Node, members: Parts) -> Node:
    found = [one for one in map(weights_of, members) if one]
    sources = sources_of(*(one.args[1] for one in members))
    weight = program.constant(torch.stack([one.weight for one in found]), sources)
    bias = program.constant(torch.stack([one.bias for one in found]))
    made = program.emit(side_by_side, whole, weight, bias)
    made.meta[ACTIVATION] = members[0].meta.get(ACTIVATION)
    return made


# Gates.


def _softmax_kind(node: Node) -> Any:
    is_last = is_call(node, aten.softmax.int) and node.args[1] in {1, -1}
    return (aten.softmax.int, *node.args[2:]) if is_last and not node.kwargs else None


def _softmax(program: Program, whole: Node, members: Parts) -> Node:
    return program.emit(aten.softmax.int, whole, -1, *members[0].args[2:])


# Weighted sums.


def weighted_sum(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[B, H] of [B, E] and [B, E, H]."""
    return torch.bmm(weights.unsqueeze(1), x).squeeze(1)


def _sum_kind(node: Node) -> Any:
    return (weighted_sum, node.args[1]) if is_call(node, weighted_sum) else None


def _sums(program: Program, whole: Node, members: Parts) -> Node:
    return program.emit(aten.bmm.default, whole, members[0].args[1])


def _know_sums(program: Program) -> None:
    """Know sums of E vectors, each times a weight, whichever way they are written."""
    found: dict[Node, list[tuple[Node, Node]]] = {}
    for node in program.nodes:
        rule = SUMS.get(node.target) if node.op == "call_function" else None
        pair: Pair | None = rule(node) if rule else None
        if pair is None or not all(map(is_tensor, pair)):
            continue
        weights, x = pair
        shapes = program.shape(weights), program.shape(x)
        are_floats = {one.meta["val"].dtype for one in (weights, x)} == {torch.float32}
        if are_floats and len(shapes[1]) == 3 and shapes[0] == shapes[1][:2]:
            found.setdefault(x, []).append((node, weights))
    for x, sums in found.items():
        for node, weights in sums:
            # A product for each row is no faster than one sum over all of them.
            if len(sums) > 1 or is_call(node, aten.einsum.default):
                with program.before(node):
                    program.replace(node, program.emit(weighted_sum, weights, x))


def _einsum(node: Node) -> Pair | None:
    equation, operands = node.args[:2]
    given, _, result = equation.replace(" ", "").partition("->")
    names = given.split(",")
    pairs: Iterable[Pair] = ((0, 1), (1, 0)) if len(operands) == 2 else ()
    for weights, x in pairs:
        is_pair = len(names[x]) == 3 == len({*names[x]}) and names[weights] == names[x][:2]
        if is_pair and result == names[x][0] + names[x][2]:
            return operands[weights], operands[x]
    return None


def _sum(node: Node) -> Pair | None:
    product = node.args[0]
    is_sum = len(node.args) == 2 and list(node.args[1]) in ([1], [-2]) and not node.kwargs
    if not is_sum or not is_call(product, aten.mul.Tensor):
        return None
    for column, x in (product.args, product.args[::-1]):
        if is_call(column, aten.unsqueeze.default) and column.args[1] in {-1, 2}:
            return column.args[0], x
    return None


SUMS: Mapping[Any, Callable[[Node], Pair | None]] = {
    aten.einsum.default: _einsum,
    aten.sum.dim_IntList: _sum,
}
"""Operator -> the weights, and what is summed, of a call that may be such a sum."""

Kind = Callable[[Node], Any]
Make = Callable[[Program, Node, Parts], Node]
ALIKE: Sequence[tuple[Kind, Make]] = (
    (_layer_kind, _layers),
    (_softmax_kind, _softmax),
    (_sum_kind, _sums),
)
"""What tells calls of an operator that can be one from others; None for other operators. And how to
make it of all parts [B, E, K], and of the calls for each: [B, E, ...]."""
