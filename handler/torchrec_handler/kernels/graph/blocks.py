"""A graph as something to call: what looks up at once, what computes block by block of the rows.

A block's tensors stay in the processor's caches, where those of a thousand rows would not.
Shapes: B rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from torchrec_handler.kernels.graph.program import Program, aten, is_tensor

BLOCK_BYTES = 2**21
"""Of the largest tensor of a block."""

LEAST_ROWS = 16
MOST_ROWS = 1024

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
            first, second, self._is_cut, self.block = cut
            self._look_up, self._compute = first.forward, second.forward
            self._measured = self._is_cut.index(True)

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
            return found
        blocks = []
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            given = [
                part[start:stop] if is_cut else part
                for part, is_cut in zip(parts, self._is_cut, strict=True)
            ]
            blocks.append(self._compute(*given))
        return [torch.cat(outputs) for outputs in zip(*blocks, strict=True)]


def _cut(program: Program, rows: Any) -> tuple[GraphModule, GraphModule, list[bool], int] | None:
    """Code before and behind the cut, which of what crosses it has B rows, and a block's rows."""
    first = _first(program, rows)
    second = [node for node in program.nodes if node not in first and node.op in {"call_function"}]
    outputs: Any = program.output.args[0]
    if not second or not all(_has_rows(program, one, rows) for one in outputs):
        return None
    crossing: list[Node] = []
    for node in (*second, program.output):
        for one in node.all_input_nodes:
            if one in first and one not in crossing and one.op != "get_attr":
                if is_tensor(one):
                    crossing.append(one)
                elif program.size(one.meta["val"]) != rows:
                    return None
    is_cut = [not one.meta.get(USER) for one in crossing]
    if True not in is_cut:
        return None
    env: dict[Node, Node] = {}
    before = Graph()
    for node in program.nodes:
        if node in first or node.op == "get_attr":
            env[node] = before.node_copy(node, env.__getitem__)
    before.output([env[one] for one in crossing])
    env = {}
    behind = Graph()
    for one in crossing:
        env[one] = behind.placeholder(one.name)
    sized = behind.call_function(aten.sym_size.int, (env[crossing[is_cut.index(True)]], 0))
    for node in (*program.nodes,):
        if node in env:
            continue
        if node.op == "get_attr":
            env[node] = behind.node_copy(node)
        elif node in first:
            env[node] = sized
        elif node.op == "call_function":
            env[node] = behind.node_copy(node, env.__getitem__)
    behind.output([env[one] for one in outputs])
    for graph in (before, behind):
        graph.eliminate_dead_code()
    largest = max((_bytes_of_a_row(program, node, rows) for node in second), default=0)
    block = int(min(max(BLOCK_BYTES // max(largest, 1), LEAST_ROWS), MOST_ROWS))
    return GraphModule(program.root, before), GraphModule(program.root, behind), is_cut, block


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
