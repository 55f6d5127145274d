"""First passes over a graph: what does nothing is taken out, what is known is computed.

Each rule looks at one node and gives what to read instead, or None. Shapes: B rows.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from torchrec_handler.kernels.graph.program import (
    Program,
    argument,
    aten,
    is_call,
    is_tensor,
    value_of,
)

MOST_FOLDED = 2**22
"""Elements of a constant that is computed out of others."""

ASSERTS = (
    aten._assert_tensor_metadata.default,  # noqa: SLF001
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
RANDOM = ("rand", "bernoulli", "dropout", "normal", "multinomial", "poisson", "exponential")


def clean(program: Program) -> None:
    """Apply the rules until none has anything to say."""
    changed = True
    while changed:
        changed = False
        for node in program.nodes:
            if node.op != "call_function":
                continue
            rule = RULES.get(node.target)
            with program.before(node):
                new = rule(program, node) if rule else None
                new = new or _folded(program, node)
            if new is not None:
                program.replace(node, new)
                changed = True
        _drop(program)


def _drop(program: Program) -> None:
    """Take out what nobody reads, and asserts of what is known anyway."""
    for node in reversed(program.nodes):
        if node.users or node.op in {"output", "placeholder"}:
            continue
        if (is_call(node, aten._assert_scalar.default) and not _may_fail(node)) or (
            not is_call(node, aten._assert_scalar.default) and not _is_random(node)
        ):
            program.graph.erase_node(node)


def _may_fail(node: Node) -> bool:
    """Whether an assert is of two lengths that a request decides."""
    condition = node.args[0]
    return isinstance(condition, Node) and is_call(condition, operator.eq)


def _is_random(node: Node) -> bool:
    return node.op == "call_function" and any(name in str(node.target) for name in RANDOM)


def _folded(program: Program, node: Node) -> Node | None:
    """What is computed of constants alone."""
    if not is_tensor(node) or _is_random(node):
        return None
    if any(value_of(one) is None for one in node.all_input_nodes):
        return None
    if any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape):
        return None
    if node.meta["val"].numel() > MOST_FOLDED:
        return None
    args = torch.fx.map_arg(node.args, value_of)
    kwargs = torch.fx.map_arg(node.kwargs, value_of)
    with torch.no_grad():
        return program.constant(node.target(*args, **kwargs).clone())


def _same(_: Program, node: Node) -> Node:
    return node.all_input_nodes[0]


def _dropout(_: Program, node: Node) -> Node | None:
    return None if argument(node, 2, "train") else node.args[0]  # type: ignore[return-value]


def _if_same_type(_: Program, node: Node) -> Node | None:
    source = node.args[0]
    same = is_tensor(source) and source.meta["val"].dtype == node.meta["val"].dtype
    return source if same else None


def _if_same_shape(program: Program, node: Node) -> Node | None:
    source = node.args[0]
    return source if program.shape(source) == program.shape(node) else None  # type: ignore


def _cat(program: Program, node: Node) -> Node | None:
    """Of a cat of cats one, of one tensor nothing."""
    tensors, axis = node.args[0], axis_of(node, argument(node, 1, "dim", 0))
    if len(tensors) == 1:
        return tensors[0]
    flat = []
    for one in tensors:
        inner = is_call(one, aten.cat.default) and axis_of(one, argument(one, 1, "dim", 0)) == axis
        flat += one.args[0] if inner else [one]
    if len(flat) == len(tensors):
        return None
    return program.emit(aten.cat.default, flat, axis)


def axis_of(node: Node, axis: int) -> int:
    """Counted from the first one."""
    return axis % node.meta["val"].dim()


def _narrow(program: Program, node: Node) -> Node | None:
    """Whole pieces of a cat are these pieces."""
    found = part_of(program, node)
    if found is None:
        return None
    source, axis, start, stop = found
    if (start, stop) == (0, program.shape(source)[axis]):
        return source
    if not is_call(source, aten.cat.default):
        return None
    if axis_of(source, argument(source, 1, "dim", 0)) != axis:
        return None
    position, taken = 0, []
    for piece in source.args[0]:  # type: ignore[union-attr]
        size = program.shape(piece)[axis]
        if not isinstance(size, int):
            return None
        if start <= position and position + size <= stop:
            taken.append(piece)
        elif start < position + size and position < stop:
            if position <= start and stop <= position + size:
                inner = program.emit(
                    aten.slice.Tensor, piece, axis, start - position, stop - position
                )
                return inner
            return None
        position += size
    if not taken:
        return None
    return taken[0] if len(taken) == 1 else program.emit(aten.cat.default, taken, axis)


def part_of(program: Program, node: Node) -> tuple[Node, int, int, int] | None:
    """Tensor, axis, start and stop, of a node that is a part of a tensor along an axis."""
    if is_call(node, aten.slice.Tensor):
        source = node.args[0]
        axis = axis_of(source, argument(node, 1, "dim", 0))
        start, stop = argument(node, 2, "start") or 0, argument(node, 3, "end")
        if argument(node, 4, "step", 1) != 1:
            return None
    elif is_call(node, aten.narrow.default):
        source, axis = node.args[0], axis_of(node.args[0], node.args[1])
        start, length = node.args[2:4]
        stop = start + length if isinstance(start, int) and isinstance(length, int) else None
    elif is_call(node, operator.getitem) and is_call(
        node.args[0], aten.split_with_sizes.default, aten.split.Tensor
    ):
        split, position = node.args
        source = split.args[0]
        axis = axis_of(source, argument(split, 2, "dim", 0))
        sizes = split.args[1]
        if isinstance(sizes, int):
            start, stop = position * sizes, (position + 1) * sizes
        elif all(isinstance(size, int) for size in sizes):
            start = sum(sizes[:position])
            stop = start + sizes[position]
        else:
            return None
    else:
        return None
    length = program.shape(source)[axis]
    if not isinstance(length, int) or not isinstance(start, int):
        return None
    stop = length if stop is None else stop
    if not isinstance(stop, int):
        return None
    start = start + length if start < 0 else start
    stop = min(stop + length if stop < 0 else stop, length)
    return source, axis, start, stop


def _matmul(program: Program, node: Node) -> Node | None:
    """A product with a constant is a layer."""
    x, weight = node.args[:2]
    value = value_of(weight)
    if value is None or value.dim() != 2 or not is_tensor(x) or x.meta["val"].dim() < 2:
        return None
    return program.emit(aten.linear.default, x, program.constant(value.t().contiguous()))


def _addmm(program: Program, node: Node) -> Node | None:
    bias, x, weight = node.args[:3]
    value, added = value_of(weight), value_of(bias)
    if value is None or added is None or added.dim() != 1 or node.kwargs:
        return None
    return program.emit(aten.linear.default, x, program.constant(value.t().contiguous()), bias)


def _add(program: Program, node: Node) -> Node | None:
    """A constant added to a layer without bias is its bias."""
    if node.kwargs:
        return None
    for layer, other in (node.args[:2], node.args[1::-1]):
        if not is_call(layer, aten.linear.default) or len(layer.users) > 1:
            continue
        value = value_of(other)
        if value is None or not value.is_floating_point():
            continue
        width = layer.meta["val"].shape[-1]
        if value.numel() != width or value.shape[-1] != width:
            continue
        bias = argument(layer, 2, "bias")
        if bias is not None:
            continue
        return program.emit(
            aten.linear.default, *layer.args[:2], program.constant(value.reshape(-1))
        )
    return None


Rule = Callable[[Program, Node], Node | None]

RULES: Mapping[Any, Rule] = {
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.detach_.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.lift_fresh.default: _same,
    aten.dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten._to_copy.default: _if_same_type,  # noqa: SLF001
    aten.to.dtype: _if_same_type,
    aten.to.device: _if_same_type,
    aten.to.dtype_layout: _if_same_type,
    aten.to.other: _if_same_type,
    aten.type_as.default: _if_same_type,
    aten.contiguous.default: lambda *_: None,
    aten.expand.default: _if_same_shape,
    aten.view.default: _if_same_shape,
    aten.reshape.default: _if_same_shape,
    aten._unsafe_view.default: _if_same_shape,  # noqa: SLF001
    aten.cat.default: _cat,
    aten.slice.Tensor: _narrow,
    aten.narrow.default: _narrow,
    operator.getitem: _narrow,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _add,
}
