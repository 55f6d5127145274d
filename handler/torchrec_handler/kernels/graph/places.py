"""A pass over what reads one place of a sequence: only that place is computed, as far as can be.

A transformer's last layer computes all places of a history, of which most models read one. What
works place by place, and an attention's queries, is computed of that place alone.
Shapes: B rows, L places.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from torchrec_handler.kernels.graph.layers import ACTIVATION
from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    argument,
    aten,
    is_call,
    is_tensor,
)
from torchrec_handler.kernels.graph.rows import is_own

VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)  # noqa: SLF001
ATTENTION = aten.scaled_dot_product_attention.default

Axes = dict[Node, int]
"""Inputs of a node of which one place is read -> the axis of places."""


class Read(NamedTuple):
    """Of a tensor [B, L, ...] one place a row, or of [..., L, ...] one place."""

    source: Node
    axis: int
    take: Callable[[Node, int], Node]
    """Emits what it reads of another tensor along an axis, which stays, with a length of 1."""
    of_rows: bool
    """Each row has a place of its own: what is read has B rows along its first axis."""


def read_places(program: Program, rows: Any) -> None:
    """Compute what is read only.

    Args:
        program: cleaned.
        rows: the expression that is B in its shapes.
    """
    _unflatten_layers(program)
    for node in program.nodes:
        read = _read(program, node, rows)
        if read is not None:
            _Region(program, read, node, rows).compute()


def _unflatten_layers(program: Program) -> None:
    """A layer of [B * L, K], whose outputs are taken apart again, is one of [B, L, K]."""
    for node in program.nodes:
        layer: Node = node.args[0] if is_call(node, *VIEWS) else None
        if not is_call(layer, aten.linear.default) or not is_call(layer.args[0], *VIEWS):
            continue
        if len(layer.users) > 1 or program.shape(node)[-1] != program.shape(layer)[-1]:
            continue
        flat = layer.args[0]
        with program.before(node):
            sizes = [*node.args[1][:-1], program.shape(flat)[-1]]
            x = program.emit(aten.reshape.default, flat.args[0], sizes)
            made = program.emit(aten.linear.default, x, *layer.args[1:])
        made.meta[ACTIVATION] = layer.meta.get(ACTIVATION)
        program.replace(node, made)
        program.graph.erase_node(layer)
        if not flat.users:
            program.graph.erase_node(flat)


def _read(program: Program, node: Node, rows: Any) -> Read | None:
    """What a node reads, where it is one place."""
    if is_call(node, aten.select.int):
        source, axis, place = node.args
        axis %= source.meta["val"].dim()
        if not isinstance(place, int):
            return None

        def cut(other: Node, along: int) -> Node:
            length = program.shape(other)[along]
            start = place % length
            return program.emit(aten.slice.Tensor, other, along, start, start + 1)

        return Read(source, axis, cut, of_rows=False)
    if is_call(node, aten.index.Tensor) and len(node.args[1]) == 2:
        source, (row, place) = node.args
        if row is None or place is None or not is_own(program, row, rows):
            return None
        if program.shape(place) != (rows,) or place.meta["val"].dtype == torch.bool:
            return None

        def index(other: Node, along: int) -> Node:
            at = [row, *[None] * (along - 1), place]
            taken = program.emit(aten.index.Tensor, other, at)
            return program.emit(aten.unsqueeze.default, taken, along)

        return Read(source, 1, index, of_rows=True)
    return None


class _Region:
    """The nodes that only what reads a place is computed of."""

    def __init__(self, program: Program, read: Read, reader: Node, rows: Any) -> None:
        self._program, self._read, self._reader, self._rows = program, read, reader, rows

    def compute(self) -> None:
        """Compute it of one place."""
        program, read, reader = self._program, self._read, self._reader
        axes, inside = self._find()
        if not inside:
            return
        with program.before(reader):
            made: dict[Node, Node] = {}
            for node in program.nodes:
                if node in inside:
                    own = {one: made[one] for one in inside[node]}
                    made[node] = self._of_one(node, axes[node], own)
                elif node in axes:
                    made[node] = read.take(node, axes[node])
                elif node is reader:
                    break
            found = program.emit(aten.squeeze.dim, made[read.source], read.axis)
        program.replace(reader, found)

    def _find(self) -> tuple[Axes, dict[Node, Axes]]:
        """The axis of places of each node that is read, and what is computed of which of them.

        That are nodes of which nobody reads another place.
        """
        outside: set[Node] = set()
        while True:
            axes: Axes = {self._read.source: self._read.axis}
            inside: dict[Node, Axes] = {}
            for node in reversed(self._program.nodes):
                if node not in axes or node in outside:
                    continue
                if not all(
                    user is self._reader or node in inside.get(user, ()) for user in node.users
                ):
                    continue
                given = _inputs(self._program, node, axes[node])
                if given is None or any(axes.get(one, axis) != axis for one, axis in given.items()):
                    continue
                inside[node] = given
                axes |= given
            wrong = {node for node in axes if node not in inside and not self._can_take(node, axes)}
            if self._read.source in wrong:
                return {}, {}
            if not wrong:
                return axes, inside
            outside |= {node for node, given in inside.items() if not wrong.isdisjoint(given)}

    def _can_take(self, node: Node, axes: Axes) -> bool:
        shape = self._program.shape(node)
        if not isinstance(shape[axes[node]], int):
            return False
        return not self._read.of_rows or (shape[0] == self._rows and axes[node] > 0)

    def _of_one(self, node: Node, axis: int, own: Mapping[Node, Node]) -> Node:
        """A node of one place of some of its inputs."""
        args = torch.fx.map_arg(node.args, lambda one: own.get(one, one))
        kwargs = torch.fx.map_arg(node.kwargs, lambda one: own.get(one, one))
        target = node.target
        if is_call(node, *VIEWS):
            target, sizes = aten.reshape.default, list(args[1])
            sizes[axis] = 1
            args = (args[0], sizes)
        found = self._program.emit(target, *args, **kwargs)
        found.meta[ACTIVATION] = node.meta.get(ACTIVATION)
        return found


def _inputs(program: Program, node: Node, axis: int) -> Axes | None:
    """What a place of a node is computed of; None where that is not known to be a place."""
    if node.op != "call_function" or not is_tensor(node):
        return None
    rule = RULES.get(node.target)
    if rule is not None:
        return rule(program, node, axis)
    tags = getattr(node.target, "tags", ())
    return _aligned(program, node, axis) if torch.Tag.pointwise in tags else None


def _aligned(program: Program, node: Node, axis: int) -> Axes:
    """Of operands that are broadcast."""
    dims = node.meta["val"].dim()
    found: Axes = {}
    for one in node.all_input_nodes:
        if is_tensor(one):
            own = axis - dims + one.meta["val"].dim()
            if own >= 0 and program.shape(one)[own] != 1:
                found[one] = own
    return found


def _layer(_: Program, node: Node, axis: int) -> Axes | None:
    is_last = axis == node.meta["val"].dim() - 1
    return None if is_last or node.args[0] in node.args[1:] else {node.args[0]: axis}


def _layer_norm(_: Program, node: Node, axis: int) -> Axes | None:
    return {node.args[0]: axis} if axis < node.meta["val"].dim() - len(node.args[1]) else None


def _along_another(_: Program, node: Node, axis: int) -> Axes | None:
    """Of what works along one axis, and keeps it."""
    given, dim = node.args[0], argument(node, 1, "dim", 0)
    if dim % node.meta["val"].dim() == axis:
        return None
    return dict.fromkeys(given if isinstance(given, list | tuple) else [given], axis)


def _transpose(_: Program, node: Node, axis: int) -> Axes:
    dims = node.meta["val"].dim()
    first, second = (dim % dims for dim in node.args[1:])
    return {node.args[0]: {first: second, second: first}.get(axis, axis)}


def _permute(_: Program, node: Node, axis: int) -> Axes:
    return {node.args[0]: node.args[1][axis] % node.meta["val"].dim()}


def _view(program: Program, node: Node, axis: int) -> Axes | None:
    """Where places are an axis of their own before and behind it."""
    before, behind = program.shape(node.args[0]), program.shape(node)
    for own, length in enumerate(before):
        same = length == behind[axis] and _product(before[:own]) == _product(behind[:axis])
        if same and _product(before[own:]) == _product(behind[axis:]):
            return {node.args[0]: own}
    return None


def _product(sizes: Any) -> Any:
    found: Any = 1
    for size in sizes:
        found = found * size
    return found


def _attention(program: Program, node: Node, axis: int) -> Axes | None:
    """Each query is a place's own; keys and values are everybody's."""
    query, key, value = node.args[:3]
    if axis != node.meta["val"].dim() - 2 or query in {key, value}:
        return None
    if argument(node, 4, "dropout_p", 0.0) or argument(node, 5, "is_causal", default=False):
        return None
    mask = argument(node, 3, "attn_mask")
    found = {query: axis}
    if mask is not None:
        if mask in {query, key, value}:
            return None
        own = mask.meta["val"].dim() - 2
        if own >= 0 and program.shape(mask)[own] != 1:
            found[mask] = own
    return found


def _product_of(_: Program, node: Node, axis: int) -> Axes | None:
    left, right = node.args[:2]
    dims = node.meta["val"].dim()
    as_long = left.meta["val"].dim() == dims and right.meta["val"].dim() >= 2
    return {left: axis} if axis == dims - 2 and as_long and left is not right else None


RULES: Mapping[Any, Callable[[Program, Node, int], Axes | None]] = {
    aten.linear.default: _layer,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _along_another,
    aten.cat.default: _along_another,
    aten.slice.Tensor: _along_another,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    **dict.fromkeys(VIEWS, _view),
    ATTENTION: _attention,
    aten.matmul.default: _product_of,
    aten.bmm.default: _product_of,
}
"""What is no pointwise operator -> its inputs of which a place is read."""
