"""Layers that names and shapes of a checkpoint show, as code that makes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Node = dict[str, Any]
"""Name -> a node, or the shape of a tensor."""

PERCEPTRONS = "_mlp"
"""What TorchRec's MLP calls its layers."""
EMBEDDING = re.compile(r"emb", re.IGNORECASE)


class Widths(NamedTuple):
    """Of a layer, or a chain of them."""

    takes: int
    gives: int


class _Part(NamedTuple):
    """The expression that makes a part, and what calling it takes and gives, where it is called."""

    made: str
    widths: Widths | None = None


class Layers(NamedTuple):
    """Code of a module's `__init__`."""

    lines: Sequence[str]
    called: Mapping[str, Widths]
    """Path of a layer, or a chain of them, that takes numbers -> how many it takes and gives."""
    others: Sequence[str]
    """Paths of parts that take no numbers, or are parameters alone."""
    uses_mlp: bool


def layers(
    shapes: Mapping[str, tuple[int, ...]], collections: Mapping[str, Sequence[str]]
) -> Layers:
    """Draw up a module with parts of these names.

    Args:
        shapes: name -> shape, of all that is no table.
        collections: path -> lines that make a collection there, `{target}` in them.
    """
    root: Node = {}
    for name, shape in shapes.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = shape
    for place in collections:
        node = root
        for part in place.split(".") if place else ():
            node = node.setdefault(part, {})
    called: dict[str, Widths] = {}
    others: list[str] = []
    lines = list(_inside("", root, collections, called, others))
    return Layers(lines or ["pass"], called, others, any("MLP(" in line for line in lines))


def _inside(
    path: str,
    node: Node,
    collections: Mapping[str, Sequence[str]],
    called: dict[str, Widths],
    others: list[str],
) -> Iterator[str]:
    """Lines that give a container its parts."""
    for name, part in node.items():
        inner = f"{path}.{name}" if path else name
        target = attribute(inner)
        if inner in collections:
            yield from (line.replace("{target}", target) for line in collections[inner])
        elif isinstance(part, tuple):
            others.append(inner)
            yield _set(path, name, f"torch.nn.Parameter(torch.empty({part}))")
        elif (layer := _layer(inner, part)) is not None:
            if layer.widths:
                called[inner] = layer.widths
            else:
                others.append(inner)
            yield _set(path, name, layer.made)
        else:
            yield _set(path, name, "torch.nn.Module()")
            yield from _inside(inner, part, collections, called, others)


def _layer(path: str, node: Node) -> _Part | None:
    """A layer or a chain of layers; None of a container."""
    if PERCEPTRONS in node and len(node) == 1:
        return _perceptrons(node[PERCEPTRONS])
    if node and all(name.isdigit() for name in node):
        return _chain(path, node)
    weight = node.get("weight")
    if not isinstance(weight, tuple) or any(isinstance(part, dict) for part in node.values()):
        return None
    if "running_mean" in node:
        return _Part(f"torch.nn.BatchNorm1d({weight[0]})", Widths(weight[0], weight[0]))
    return _plain(path, weight, node) if node.keys() <= {"weight", "bias"} else None


def _plain(path: str, weight: tuple[int, ...], node: Node) -> _Part | None:
    """A layer that has a weight, and perhaps a bias."""
    bias = "" if "bias" in node else ", bias=False"
    if len(weight) == 1:
        return _Part(f"torch.nn.LayerNorm({weight[0]}{bias})", Widths(weight[0], weight[0]))
    if len(weight) != 2:
        return None
    gives, takes = weight
    if bias and EMBEDDING.search(path):
        return _Part(f"torch.nn.Embedding({gives}, {takes})")
    return _Part(f"torch.nn.Linear({takes}, {gives}{bias})", Widths(takes, gives))


def _perceptrons(node: Node) -> _Part | None:
    """TorchRec's MLP."""
    shapes = []
    for number in range(len(node)):
        linear = node.get(str(number), {}).get("_linear", {})
        if not isinstance(linear, dict) or "weight" not in linear:
            return None
        shapes.append(linear["weight"])
    bias = "" if "bias" in node["0"]["_linear"] else ", bias=False"
    made = f"MLP({shapes[0][1]}, {[shape[0] for shape in shapes]}{bias})"
    return _Part(made, Widths(shapes[0][1], shapes[-1][0]))


def _chain(path: str, node: Node) -> _Part | None:
    """A Sequential; where a number is missing there was something without weights."""
    numbers = sorted(map(int, node))
    if all(isinstance(part, tuple) for part in node.values()):
        if numbers != list(range(len(numbers))):
            return None
        inside = ", ".join(f"torch.empty({node[str(number)]})" for number in numbers)
        return _Part(f"torch.nn.ParameterList([{inside}])")
    parts: list[str] = []
    widths: list[Widths | None] = []
    for number in range(numbers[-1] + 1):
        part = node.get(str(number))
        if part is None:
            parts.append("torch.nn.ReLU()" if parts else "torch.nn.Identity()")
            continue
        layer = _layer(f"{path}.{number}", part) if isinstance(part, dict) else None
        if layer is None:
            return None
        parts.append(layer.made)
        widths.append(layer.widths)
    made = f"torch.nn.Sequential({', '.join(parts)})"
    fitting = [one for one in widths if one]
    follow = all(one.gives == other.takes for one, other in pairwise(fitting))
    if not follow or len(fitting) < len(widths):
        return _Part(made)
    return _Part(made, Widths(fitting[0].takes, fitting[-1].gives))


def _set(path: str, name: str, value: str) -> str:
    target = attribute(f"{path}.{name}" if path else name)
    if name.isidentifier():
        return f"{target} = {value}"
    owner = attribute(path) if path else "self"
    add = "register_parameter" if value.startswith("torch.nn.Parameter(") else "add_module"
    return f'{owner}.{add}("{name}", {value})'


def attribute(path: str) -> str:
    """How code reaches a part; a name that is no identifier is a key of its owner's."""
    reached = "self"
    for part in path.split("."):
        reached += f".{part}" if part.isidentifier() else f'.get_submodule("{part}")'
    return reached
