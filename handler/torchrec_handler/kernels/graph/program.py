"""A graph under change: nodes, the constants they read, and the shapes of what they give.

Shapes: B rows.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx import Graph, GraphModule

aten = torch.ops.aten

Node = Any
"""A node of torch.fx, whose own type says of its arguments that they may be anything."""
Size = Any
"""A length of an axis: an int, or an expression of sympy's over B."""


@dataclass(kw_only=True)
class Site:
    """A place where a method calls an embedding collection."""

    module: torch.nn.Module
    keys: list[str]
    """Of the KeyedJaggedTensor that it is given, F of them."""
    is_weighted: bool
    names: list[str]
    """Of the embeddings that it gives."""
    widths: list[int]
    sources: list[int]
    """Of each embedding, which of the keys it is looked up for."""
    is_pooled: bool
    """It gives a KeyedTensor, else a dict of JaggedTensors."""
    is_plain: bool
    """Nobody has added anything to the collection: it need not be called as a module."""


Sources = tuple[torch.Tensor, ...]
"""The parameters, buffers and constants of the module that something is made of."""


class Program:
    """A graph, what its nodes are attributes of, and the world its shapes are known in."""

    def __init__(
        self, graph: Graph, root: torch.nn.Module, fake_mode: Any, numbers: Any = None
    ) -> None:
        self.graph = graph
        self.root = root
        self.fake_mode = fake_mode
        self._numbers = numbers or itertools.count(1)

    def copy(self) -> "Program":
        """Another graph of the same constants."""
        graph = Graph()
        nodes: dict[Node, Node] = {}
        for node in self.graph.nodes:
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
        return Program(graph, self.root, self.fake_mode, self._numbers)

    @property
    def nodes(self) -> list[Node]:
        """All nodes, each behind what it reads."""
        return list(self.graph.nodes)

    @property
    def inputs(self) -> list[Node]:
        """What the graph is called with, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def output(self) -> Node:
        """What it gives."""
        return next(node for node in reversed(self.graph.nodes) if node.op == "output")

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Add a call at the place of insertion; its shape is that of calling it on shapes."""
        node = self.graph.call_function(target, args, kwargs)
        with self.fake_mode, torch.no_grad():
            node.meta["val"] = target(*_values(args), **_values(kwargs))
        return node

    def constant(self, tensor: torch.Tensor, sources: Sources = ()) -> Node:
        """Add something that is known before anybody asks, and what it is made of."""
        name = f"constant_{next(self._numbers)}"
        setattr(self.root, name, tensor)
        node = self.graph.create_node("get_attr", name)
        node.meta["val"] = self.fake_mode.from_tensor(tensor, static_shapes=True)
        node.meta |= {"constant": tensor, "sources": sources}
        return node

    def replace(self, old: Node, new: Node) -> None:
        """Let everybody read another node, and drop the old one."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def sort(self) -> None:
        """Put every node behind what it reads again, and else leave the order as it is."""
        found: dict[Node, None] = {}

        def enter(node: Node) -> None:
            if node not in found:
                for one in node.all_input_nodes:
                    enter(one)
                found[node] = None

        for node in self.nodes:
            enter(node)
        for node in found:
            self.output.prepend(node)

    def before(self, node: Node) -> Any:
        """Insert there."""
        return self.graph.inserting_before(node)

    def after(self, nodes: Iterable[Node]) -> Any:
        """Insert behind the last one of some, and behind all inputs."""
        wanted = {*nodes, *self.inputs}
        last = next(node for node in reversed(self.graph.nodes) if node in wanted)
        return self.graph.inserting_after(last)

    def shape(self, node: Node) -> tuple[Size, ...]:
        """Of a tensor."""
        return tuple(map(self.size, node.meta["val"].shape))

    def size(self, value: Any) -> Size:
        """A length, simplified by all that was found out of it."""
        if isinstance(value, torch.SymInt):
            found = self.fake_mode.shape_env.replace(value.node.expr)
            return int(found) if found.is_Integer else found
        return int(value)

    def code(self) -> GraphModule:
        """The graph as something to call."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return GraphModule(self.root, self.graph)


def value_of(node: Any) -> torch.Tensor | None:
    """What a node is, where that is known before anybody asks."""
    return node.meta.get("constant") if isinstance(node, fx.Node) else None


def sources_of(*nodes: Any) -> Sources:
    """What known nodes are made of, each once."""
    return tuple({id(one): one for node in nodes for one in node.meta["sources"]}.values())


def is_tensor(node: Any) -> bool:
    """Whether a node gives one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def is_call(node: Any, *targets: Any) -> bool:
    """Whether a node calls one of some functions."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument, however it was given."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _values(given: Any) -> Any:
    return fx.map_arg(given, lambda node: node.meta["val"])
