"""Layers that names and shapes of a checkpoint show, as code that makes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Node = dict[str, Any]
"""Name -> a node, or the shape of a tensor."""

PERCEPTRONS = "_mlp"
"""What TorchRec's MLP calls its layers."""
EMBEDDING = re.compile(r"emb", re.IGNORECASE)


class Layers(NamedTuple):
    """Code of a module's `__init__`."""

    lines: Sequence[str]
    widths: Mapping[str, int]
    """Path of a layer, or a chain of them -> how many numbers it takes."""
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
    widths: dict[str, int] = {}
    lines = list(_inside("", root, collections, widths))
    return Layers(lines or ["pass"], widths, any("MLP(" in line for line in lines))


def _inside(
    path: str, node: Node, collections: Mapping[str, Sequence[str]], widths: dict[str, int]
) -> Iterator[str]:
    """Lines that give a container its parts."""
    for name, part in node.items():
        inner = f"{path}.{name}" if path else name
        target = _attribute(inner)
        if inner in collections:
            yield from (line.replace("{target}", target) for line in collections[inner])
        elif isinstance(part, tuple):
            yield _set(path, name, f"torch.nn.Parameter(torch.empty({part}))")
        elif (made := _layer(inner, part)) is not None:
            widths[inner] = made[1]
            yield _set(path, name, made[0])
        else:
            yield _set(path, name, "torch.nn.Module()")
            yield from _inside(inner, part, collections, widths)


def _layer(path: str, node: Node) -> tuple[str, int] | None:
    """The expression of a layer or a chain of layers, and what it takes; None of a container."""
    if PERCEPTRONS in node and len(node) == 1:
        return _perceptrons(node[PERCEPTRONS])
    if node and all(name.isdigit() for name in node):
        return _chain(path, node)
    weight = node.get("weight")
    if not isinstance(weight, tuple) or any(isinstance(part, dict) for part in node.values()):
        return None
    if "running_mean" in node:
        return f"torch.nn.BatchNorm1d({weight[0]})", weight[0]
    return _plain(path, weight, node) if node.keys() <= {"weight", "bias"} else None


def _plain(path: str, weight: tuple[int, ...], node: Node) -> tuple[str, int] | None:
    """A layer that has a weight, and perhaps a bias."""
    bias = "" if "bias" in node else ", bias=False"
    if len(weight) == 1:
        return f"torch.nn.LayerNorm({weight[0]}{bias})", weight[0]
    if len(weight) != 2:
        return None
    if bias and EMBEDDING.search(path):
        return f"torch.nn.Embedding({weight[0]}, {weight[1]})", weight[1]
    return f"torch.nn.Linear({weight[1]}, {weight[0]}{bias})", weight[1]


def _perceptrons(node: Node) -> tuple[str, int] | None:
    """TorchRec's MLP."""
    shapes = []
    for number in range(len(node)):
        linear = node.get(str(number), {}).get("_linear", {})
        if not isinstance(linear, dict) or "weight" not in linear:
            return None
        shapes.append(linear["weight"])
    bias = "" if "bias" in node["0"]["_linear"] else ", bias=False"
    return f"MLP({shapes[0][1]}, {[shape[0] for shape in shapes]}{bias})", shapes[0][1]


def _chain(path: str, node: Node) -> tuple[str, int] | None:
    """A Sequential; where a number is missing there was something without weights."""
    numbers = sorted(map(int, node))
    if all(isinstance(part, tuple) for part in node.values()):
        if numbers != list(range(len(numbers))):
            return None
        inside = ", ".join(f"torch.empty({node[str(number)]})" for number in numbers)
        return f"torch.nn.ParameterList([{inside}])", node["0"][-1]
    parts: list[str] = []
    width = 0
    for number in range(numbers[-1] + 1):
        part = node.get(str(number))
        if part is None:
            parts.append("torch.nn.ReLU()" if parts else "torch.nn.Identity()")
            continue
        made = _layer(f"{path}.{number}", part) if isinstance(part, dict) else None
        if made is None:
            return None
        parts.append(made[0])
        width = width or made[1]
    return f"torch.nn.Sequential({', '.join(parts)})", width


def _set(path: str, name: str, value: str) -> str:
    target = _attribute(f"{path}.{name}" if path else name)
    if name.isidentifier():
        return f"{target} = {value}"
    owner = _attribute(path) if path else "self"
    add = "register_parameter" if value.startswith("torch.nn.Parameter(") else "add_module"
    return f'{owner}.{add}("{name}", {value})'


def _attribute(path: str) -> str:
    """How code reaches a part; a name that is no identifier is a key of its owner's."""
    reached = "self"
    for part in path.split("."):
        reached += f".{part}" if part.isidentifier() else f'.get_submodule("{part}")'
    return reached
