"""First passes over a graph: what does nothing is taken out, what is known is computed.

Each rule looks at one node and gives what to read instead, or None. Shapes: B rows.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    argument,
    aten,
    is_call,
    is_tensor,
    sources_of,
    value_of,
)

END = 2**63 - 1
"""Where a slice ends that has no end."""

MOST_FOLDED = 2**22
"""Elements of a constant that is computed out of others."""

ASSERT = aten._assert_scalar.default  # noqa: SLF001  it has no other name
ASSERTS = (aten._assert_async.default, aten._assert_async.msg)  # noqa: SLF001
NUMBERS = (aten.item.default, aten._local_scalar_dense.default)  # noqa: SLF001
LIMITS = (operator.le, operator.lt, operator.ge, operator.gt, operator.ne)
RANDOM = ("rand", "bernoulli", "dropout", "normal", "multinomial", "poisson", "exponential")


class Part(NamedTuple):
    """A part of a tensor along an axis."""

    source: Node
    axis: int
    start: int
    stop: int


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
        is_kept = node.users or node.op in {"output", "placeholder"} or is_random(node)
        if not is_kept and not _may_fail(node):
            program.graph.erase_node(node)


def _may_fail(node: Node) -> bool:
    """Whether a node is an assert of a tensor, of two lengths that a request decides, or a number.

    Of a number and 0, or a length, it is torch's or TorchRec's own, which is known to hold.
    """
    if not is_call(node, ASSERT):
        return is_call(node, *ASSERTS)
    said = node.args[0]
    is_limit = is_call(said, *LIMITS) and any(isinstance(one, int) and one for one in said.args)
    return is_call(said, operator.eq) or (is_limit and _is_of_number(said))


def _is_of_number(node: Node) -> bool:
    """Whether what a tensor holds is asked for behind some operators on numbers."""
    return is_call(node, *NUMBERS) or (
        not is_tensor(node) and any(map(_is_of_number, node.all_input_nodes))
    )


def is_random(node: Node) -> bool:
    """Whether a node draws numbers, or drops some."""
    return node.op == "call_function" and any(name in str(node.target) for name in RANDOM)


def _folded(program: Program, node: Node) -> Node | None:
    """What is computed of constants alone."""
    if not is_tensor(node) or is_random(node):
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
        value = node.target(*args, **kwargs).clone()
    return program.constant(value, sources_of(*node.all_input_nodes))


def _same(_: Program, node: Node) -> Node:
    return node.all_input_nodes[0]


def _dropout(_: Program, node: Node) -> Node | None:
    return None if argument(node, 2, "train") else node.args[0]


def _if_same_type(_: Program, node: Node) -> Node | None:
    source = node.args[0]
    same = is_tensor(source) and source.meta["val"].dtype == node.meta["val"].dtype
    return source if same else None


def _if_same_shape(program: Program, node: Node) -> Node | None:
    source = node.args[0]
    return source if program.shape(source) == program.shape(node) else None


def _transpose(_: Program, node: Node) -> Node | None:
    first, second = (axis_of(node, axis) for axis in node.args[1:])
    return node.args[0] if first == second else None


def _cat(program: Program, node: Node) -> Node | None:
    """Of a cat of cats one, of one tensor nothing."""
    tensors, axis = node.args[0], axis_of(node, argument(node, 1, "dim", 0))
    if len(tensors) == 1:
        return tensors[0]
    flat: list[Node] = []
    for one in tensors:
        inner = is_call(one, aten.cat.default) and axis_of(one, argument(one, 1, "dim", 0)) == axis
        flat += one.args[0] if inner else [one]
    if len(flat) == len(tensors):
        return None
    return program.emit(aten.cat.default, flat, axis)


def axis_of(node: Node, axis: int) -> int:
    """Counted from the first one."""
    dims: int = node.meta["val"].dim()
    return axis % dims


def _narrow(program: Program, node: Node) -> Node | None:
    """All of a tensor is the tensor, and whole pieces of a cat are these pieces."""
    bounds = _bounds(node)
    if bounds and bounds[2:] in {(0, None), (0, END)}:
        return bounds[0]
    part = part_of(program, node)
    if part is None:
        return None
    if (part.start, part.stop) == (0, program.shape(part.source)[part.axis]):
        return part.source
    is_cat = is_call(part.source, aten.cat.default)
    if not is_cat or axis_of(part.source, argument(part.source, 1, "dim", 0)) != part.axis:
        return None
    return _pieces(program, part)


def _pieces(program: Program, part: Part) -> Node | None:
    """A part of a cat, where it is of whole pieces or lies within one."""
    taken: list[Node] = []
    end = 0
    for piece in part.source.args[0]:
        size = program.shape(piece)[part.axis]
        if not isinstance(size, int):
            return None
        begin, end = end, end + size
        if begin <= part.start and part.stop <= end:
            where = part.axis, part.start - begin, part.stop - begin
            return program.emit(aten.slice.Tensor, piece, *where)
        if part.start <= begin and end <= part.stop:
            taken.append(piece)
        elif part.start < end and begin < part.stop:
            return None
    return program.emit(aten.cat.default, taken, part.axis) if taken else None


def part_of(program: Program, node: Node) -> Part | None:
    """The part of another tensor that a node is, of known place and length."""
    found = _bounds(node)
    if found is None:
        return None
    source, axis, start, stop = found
    axis = axis_of(source, axis)
    length = program.shape(source)[axis]
    stop = length if stop is None else stop
    if not all(isinstance(one, int) for one in (length, start, stop)):
        return None
    start, stop = (one + length if one < 0 else one for one in (start, stop))
    return Part(source, axis, start, min(stop, length))


def _bounds(node: Node) -> tuple[Node, int, Any, Any] | None:
    if is_call(node, aten.slice.Tensor) and argument(node, 4, "step", 1) == 1:
        start, stop = argument(node, 2, "start") or 0, argument(node, 3, "end")
        return node.args[0], argument(node, 1, "dim", 0), start, stop
    if is_call(node, aten.narrow.default):
        source, axis, start, length = node.args
        is_known = isinstance(start, int) and isinstance(length, int)
        return (source, axis, start, start + length) if is_known else None
    if is_call(node, operator.getitem):
        split, position = node.args
        if is_call(split, aten.split_with_sizes.default, aten.split.Tensor):
            source, sizes = split.args[:2]
            if isinstance(sizes, int):
                sizes = [sizes] * (position + 1)
            if all(isinstance(size, int) for size in sizes):
                start = sum(sizes[:position])
                return source, argument(split, 2, "dim", 0), start, start + sizes[position]
    return None


def _matmul(program: Program, node: Node) -> Node | None:
    """A product with a constant is a layer."""
    x, weight = node.args[:2]
    value = value_of(weight)
    if value is None or value.dim() != 2 or not is_tensor(x) or x.meta["val"].dim() < 2:
        return None
    return program.emit(aten.linear.default, x, _turned(program, weight, value))


def _turned(program: Program, weight: Node, value: torch.Tensor) -> Node:
    return program.constant(value.t().contiguous(), sources_of(weight))


def _addmm(program: Program, node: Node) -> Node | None:
    bias, x, weight = node.args[:3]
    value, added = value_of(weight), value_of(bias)
    if value is None or added is None or added.dim() != 1 or node.kwargs:
        return None
    return program.emit(aten.linear.default, x, _turned(program, weight, value), bias)


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
    aten.transpose.int: _transpose,
    aten.cat.default: _cat,
    aten.slice.Tensor: _narrow,
    aten.narrow.default: _narrow,
    operator.getitem: _narrow,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _add,
}
