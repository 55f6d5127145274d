"""Whether rows of a batch reach each other in a node of a graph.

Shapes: B rows.
"""

from collections.abc import Sequence
from typing import Any

from torchrec_handler.kernels.graph.program import Node, Program, argument, aten, is_call, is_tensor

OPERATOR = "operator"
"""In the `meta` of a node that calls torch's own function: the operator that it is."""

APART = (
    aten.cat.default,
    aten.stack.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.narrow.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.sym_size.int,
    aten.permute.default,
)
"""Operators along an axis that take numbers from one place to another."""


def mixes(program: Program, node: Node, rows: Any, given: Sequence[Node]) -> bool:
    """Whether rows may reach each other in a node, which must see all of them then.

    Args:
        program: the node's.
        node: a call.
        rows: the expression that is B in shapes.
        given: those of the node's inputs whose rows matter.
    """
    of_rows = [one for one in given if is_tensor(one) and _axes(program, one, rows)]
    if not of_rows or _is_along(program, node, of_rows[0], rows):
        return bool(of_rows)
    return is_tensor(node) and len(_axes(program, node, rows)) != 1


def _axes(program: Program, node: Node, rows: Any) -> list[int]:
    """The axes whose length B decides."""
    shape = program.shape(node)
    return [axis for axis, size in enumerate(shape) if not isinstance(size, int) and size.has(rows)]


def _is_along(program: Program, node: Node, source: Node, rows: Any) -> bool:
    """Whether an operator works along an axis of rows."""
    axes = _axes(program, source, rows)
    if is_call(node, aten.index.Tensor):
        given = node.args[1][: axes[-1] + 1]
        return not all(at is None or is_own(program, at, rows) for at in given)
    target = node.meta.get(OPERATOR, node.target)
    schema = getattr(target, "_schema", None)
    if schema is None or target in APART:
        return False
    known = {one.name: at for at, one in enumerate(schema.arguments)}
    name = next((name for name in ("dim", "dims") if name in known), None)
    if name is None:
        return False
    dims = argument(node, known[name], name, schema.arguments[known[name]].default_value)
    dims = dims if isinstance(dims, list | tuple) else [dims]
    length = source.meta["val"].dim()
    return any(isinstance(dim, int) and dim % length in axes for dim in dims)


def is_own(program: Program, at: Node, rows: Any) -> bool:
    """Whether an index is that of each row itself."""
    is_count = is_call(at, aten.arange.default) and program.shape(at) == (rows,)
    return is_count and len(at.args) == 1
