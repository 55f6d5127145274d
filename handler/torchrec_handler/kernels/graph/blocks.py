"""A graph as something to call: what looks up at once, what computes block by block of the rows.

A block's tensors stay in the processor's caches, where those of a thousand rows would not.
Shapes: B rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, GraphModule

from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    aten,
    is_tensor,
)
from torchrec_handler.kernels.graph.rows import mixes

BLOCK_BYTES = 2**23
"""Of the largest tensor of a block."""

LEAST_ROWS = 16
MOST_ROWS = 1024
ALL_ROWS = 2**62
"""Of a block where there is one only."""

SITE = "site"
"""In a node's `meta`: it calls a collection."""
USER = "user"
"""In a node's `meta`: it has a row a user, not one a row of the batch."""


class Runner:
    """Code of a program, run in blocks where its outputs have B rows each."""

    def __init__(self, program: Program, rows: Any) -> None:
        """Make the code.

        Args:
            program: with all its lookups and layers in place.
            rows: the expression that is B in its shapes.
        """
        self.block = 0
        """Rows of a block; 0 where there are none."""
        cut = _cut(program, rows)
        if cut is None:
            self._whole = program.code().forward
        else:
            self._look_up, self._compute = cut.before.forward, cut.behind.forward
            self._is_cut, self.block = cut.is_cut, cut.block
            self._measured = self._is_cut.index(True)

    def stay_whole(self) -> None:
        """Run no blocks any more."""
        self.block = ALL_ROWS if self.block else 0

    def __call__(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        """What the program gives, of its inputs."""
        block = self.block
        if not block:
            found: Sequence[torch.Tensor] = self._whole(*inputs)
            return found
        parts = self._look_up(*inputs)
        rows = parts[self._measured].shape[0]
        if rows <= block:
            found = self._compute(*parts)
            return found  # noqa: RET504  code of a graph has no type
        blocks = []
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            given = [
                part[start:stop] if is_cut else part
                for part, is_cut in zip(parts, self._is_cut, strict=True)
            ]
            blocks.append(self._compute(*given))
        return [torch.cat(outputs) for outputs in zip(*blocks, strict=True)]


class Cut(NamedTuple):
    """A program in two."""

    before: GraphModule
    behind: GraphModule
    is_cut: list[bool]
    """Which of what crosses has B rows."""
    block: int
    """Rows of a block."""


def _cut(program: Program, rows: Any) -> Cut | None:
    first = _first(program, rows)
    second = [node for node in program.nodes if node not in first and node.op == "call_function"]
    outputs = program.output.args[0]
    crossing = _crossing(program, first, second, rows)
    if not second or not crossing or not all(_has_rows(program, one, rows) for one in outputs):
        return None
    is_cut = [not one.meta.get(USER) for one in crossing]
    of_rows = {node for node in program.nodes if not node.meta.get(USER)}
    if True not in is_cut or any(
        mixes(program, node, rows, [one for one in node.all_input_nodes if one in of_rows])
        for node in second
    ):
        return None
    largest = max(_bytes_of_a_row(program, node, rows) for node in second)
    return Cut(
        before=_code(program, first, crossing),
        behind=_code_behind(program, first, crossing, crossing[is_cut.index(True)]),
        is_cut=is_cut,
        block=int(min(max(BLOCK_BYTES // max(largest, 1), LEAST_ROWS), MOST_ROWS)),
    )


def _crossing(
    program: Program, first: set[Node], second: list[Node], rows: Any
) -> list[Node] | None:
    """What is computed before the cut and read behind it; None where that has other sizes."""
    crossing: dict[Node, None] = {}
    for node in (*second, program.output):
        for one in node.all_input_nodes:
            if one in first and is_tensor(one):
                crossing[one] = None
            elif one in first and program.size(one.meta["val"]) != rows:
                return None
    return list(crossing)


def _code(program: Program, first: set[Node], crossing: list[Node]) -> GraphModule:
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in program.nodes:
        if node in first or node.op == "get_attr":
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output([made[one] for one in crossing])
    graph.eliminate_dead_code()
    return GraphModule(program.root, graph)


def _code_behind(
    program: Program, first: set[Node], crossing: list[Node], measured: Node
) -> GraphModule:
    graph = Graph()
    made: dict[Node, Node] = {one: graph.placeholder(one.name) for one in crossing}
    # The only size that crosses is that of the rows, which now are those of a block.
    rows = graph.call_function(aten.sym_size.int, (made[measured], 0))
    for node in program.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and node not in first):
            made[node] = graph.node_copy(node, made.__getitem__)
        elif node not in made:
            made[node] = rows
    graph.output([made[one] for one in program.output.args[0]])
    graph.eliminate_dead_code()
    return GraphModule(program.root, graph)


def _first(program: Program, rows: Any) -> set[Node]:
    """What has to be done for all rows at once: lookups, and what has no axis of rows yet."""
    first = {node for node in program.nodes if node.op == "placeholder" or node.meta.get(SITE)}
    before = 0
    while before != len(first):
        before = len(first)
        for node in reversed(program.nodes):
            if node.op == "call_function" and any(user in first for user in node.users):
                first.add(node)
        for node in program.nodes:
            if node in first or node.op != "call_function":
                continue
            given = [one for one in node.all_input_nodes if one in first]
            if node.meta.get(USER) or not all(_may_cross(program, one, rows) for one in given):
                first.add(node)
    return first


def _may_cross(program: Program, node: Node, rows: Any) -> bool:
    value = node.meta.get("val")
    if node.op == "get_attr" or node.meta.get(USER):
        return is_tensor(node)
    if isinstance(value, torch.SymInt):
        return bool(program.size(value) == rows)
    return _has_rows(program, node, rows)


def _has_rows(program: Program, node: Any, rows: Any) -> bool:
    if not is_tensor(node) or node.meta.get(USER) or not node.meta["val"].dim():
        return False
    return bool(program.shape(node)[0] == rows)


def _bytes_of_a_row(program: Program, node: Node, rows: Any) -> int:
    if not is_tensor(node):
        return 0
    size = 4
    for one in program.shape(node):
        size = size * (one if isinstance(one, int) else one.subs(rows, 1))
    return int(size) if not hasattr(size, "free_symbols") or not size.free_symbols else 0
