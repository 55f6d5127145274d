"""A method of a predict module as a graph, with embedding collections cut out of it.

`torch.export` follows the method once, with B left open. What a collection gives is a node of its
own, which names the site; inside of it nothing is followed.
Shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree
from torchrec.inference.modules import PredictModule

from torchrec_handler.kernels.graph.following import masks_as_they_are, open_lengths, quiet
from torchrec_handler.kernels.graph.program import Program, Site, aten
from torchrec_handler.kernels.graph.sites import Boundary, CannotCapture, Recorder, boundaries

Batch = Mapping[str, torch.Tensor | list[torch.Tensor]]

IN_PLACE: Mapping[Any, Any] = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.selu_.default: aten.selu.default,
    aten.silu_.default: aten.silu.default,
    aten.mish_.default: aten.mish.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.tanh_.default: aten.tanh.default,
    aten.masked_fill_.Scalar: aten.masked_fill.Scalar,
    aten.masked_fill_.Tensor: aten.masked_fill.Tensor,
}
"""Activations and masks, which give their input's type whatever that is."""

NEW = (aten.linear.default, aten.batch_norm.default, aten.layer_norm.default)
"""What is made of other operators, and never gives its input."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A method as a graph."""

    program: Program
    sites: list[Site]
    rows: Any
    """The expression that is B in shapes."""
    names: list[tuple[str, int | None]]
    """Of each input of the graph: its name in the batch, and its position in a list of tensors."""
    spec: pytree.TreeSpec
    """How the outputs are put together."""


def capture(
    module: torch.nn.Module, qualname: str, batch: Batch, features: Mapping[str, int]
) -> Captured:
    """Follow a method.

    Args:
        module: the predict module; it is left as it was.
        qualname: a method that takes the batched input.
        batch: some rows of it, more than two.
        features: F of each sparse input.

    Raises:
        CannotCapture: says why.
    """
    names, tensors = flatten(batch)
    sites: list[Site] = []
    with boundaries(module, lambda inner: Recorder(inner, sites)):
        _call(module, qualname, batch)
    rows = Dim("rows")
    dims = [_dims(name, features, rows) for name, _ in names]
    calls = iter(range(len(sites)))
    method = _Method(module, qualname, names)
    try:
        with (
            boundaries(module, lambda inner: Boundary(inner, sites, calls)),
            masks_as_they_are(),
            open_lengths(module),
            quiet(),
            torch.no_grad(),
        ):
            exported = torch.export.export(
                method, tuple(tensors), dynamic_shapes=(tuple(dims),), strict=False
            )
            if _writes(exported.graph):
                exported = exported.run_decompositions({})
    except CannotCapture:
        raise
    except Exception as error:
        message = f"torch.export cannot follow it: {type(error).__name__}: {_first_line(error)}"
        raise CannotCapture(message) from error
    return _captured(exported, sites, names)


def _writes(graph: Any) -> bool:
    """Whether anything is written to in place, but for activations, which are put beside it."""
    left = False
    users: dict[Any, list[Any]] = {}
    for node in graph.nodes:
        for one in node.all_input_nodes:
            users.setdefault(one, []).append(node)
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        beside = IN_PLACE.get(node.target)
        if beside and all(map(_is_new, (node.args[0], *users[node.args[0]]))):
            node.target = beside
        left = left or node.target is not beside
    return left


def _is_new(node: Any) -> bool:
    """Whether what a node gives shares no memory with what it takes."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        return False
    is_alias = any(one.alias_info for one in target._schema.returns)  # noqa: SLF001
    composite = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001
    may_alias = target.has_kernel_for_dispatch_key(composite) and target not in NEW
    return target in IN_PLACE or not (is_alias or may_alias)


def _captured(exported: Any, sites: list[Site], names: list[tuple[str, int | None]]) -> Captured:
    signature = exported.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        message = "it changes its buffers or inputs"
        raise CannotCapture(message)
    graph = exported.graph_module.graph
    for node in graph.nodes:
        is_other = isinstance(node.target, torch._ops.HigherOrderOperator)  # noqa: SLF001
        if node.op in {"get_attr", "call_module", "call_method"} or is_other:
            message = f"it holds {node.target}, a part with a graph of its own"
            raise CannotCapture(message)
    inputs = set(signature.user_inputs)
    fake_mode = next(
        node.meta["val"].fake_mode
        for node in graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
    )
    # Nodes of an exported graph do not know all of their users; those of a copy do.
    program = Program(graph, exported.graph_module, fake_mode).copy()
    graph = program.graph
    for node in program.inputs:
        if node.name in inputs:
            continue
        name = signature.inputs_to_parameters.get(node.name) or signature.inputs_to_buffers.get(
            node.name
        )
        if name is None:
            tensor = exported.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
        elif name in exported.state_dict:
            tensor = exported.state_dict[name]
        else:
            tensor = exported.constants[name]
        with graph.inserting_after(node):
            constant = program.constant(tensor.detach(), (tensor,))
        program.replace(node, constant)
    _check_open(exported, _ids_symbols(program, names), fake_mode)
    rows = next(
        symbol
        for symbol in (_rows_symbol(program, node, names) for node in program.inputs)
        if symbol is not None
    )
    return Captured(
        program=program, sites=sites, rows=rows, names=names, spec=exported.call_spec.out_spec
    )


def _rows_symbol(program: Program, node: Any, names: Any) -> Any:
    name, _ = names[program.inputs.index(node)]
    if name.endswith((".values", ".weights")):
        return None
    (size, *_) = program.shape(node)
    (symbol,) = size.free_symbols
    return symbol


def _ids_symbols(program: Program, names: Any) -> set[Any]:
    found: set[Any] = set()
    for (name, _), node in zip(names, program.inputs, strict=True):
        if name.endswith((".values", ".weights")):
            # As it was before it was found to be another's.
            found |= node.meta["val"].shape[0].node._expr.free_symbols  # noqa: SLF001
    return found


def _check_open(exported: Any, ids: set[Any], fake_mode: Any) -> None:
    """See that no branch was taken by the number of rows or ids."""
    for guard in fake_mode.shape_env.guards:
        symbols = guard.expr.free_symbols
        if symbols & ids and (symbols - ids or len(symbols) == 1 or guard.expr.rel_op != "=="):
            message = f"it does something else where the numbers of ids are not {guard.expr}"
            raise CannotCapture(message)
    for symbol, limits in exported.range_constraints.items():
        if not str(symbol).startswith("u") and limits.upper < 2**40:
            message = f"it does something else beyond {limits.upper} rows or ids"
            raise CannotCapture(message)


def flatten(batch: Batch) -> tuple[list[tuple[str, int | None]], list[torch.Tensor]]:
    """The tensors of a batch, and what they are: name, and position in a list."""
    names: list[tuple[str, int | None]] = []
    tensors: list[torch.Tensor] = []
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            names.append((name, None))
            tensors.append(value)
        else:
            names += [(name, position) for position in range(len(value))]
            tensors += value
    return names, tensors


def _dims(name: str, features: Mapping[str, int], rows: Any) -> dict[int, Any]:
    owner, _, suffix = name.rpartition(".")
    if owner not in features:
        return {0: rows}
    if suffix == "lengths":
        return {0: features[owner] * rows if features[owner] > 1 else rows}
    return {0: Dim("ids_" + str(sorted(features).index(owner)))}


class _Method(torch.nn.Module):
    """A method of a predict module, called with tensors."""

    def __init__(
        self, module: torch.nn.Module, qualname: str, names: Sequence[tuple[str, int | None]]
    ) -> None:
        super().__init__()
        self.module = module
        self._qualname, self._names = qualname, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        """What the method gives, as a plain dict."""
        batch: dict[str, Any] = {}
        for (name, position), tensor in zip(self._names, tensors, strict=True):
            if position is None:
                batch[name] = tensor
            else:
                batch.setdefault(name, []).append(tensor)
        result = _call(self.module, self._qualname, batch)
        if not isinstance(result, Mapping):
            message = "it does not give a dict"
            raise CannotCapture(message)
        return {str(name): value for name, value in result.items()}


def _call(module: Any, qualname: str, batch: Batch) -> Any:
    """A method without the modes that `PredictModule.forward` sets, which export cannot follow."""
    is_plain = isinstance(module, PredictModule) and type(module).forward is PredictModule.forward
    method = "predict_forward" if qualname == "forward" and is_plain else qualname
    with torch.no_grad():
        return getattr(module, method)(batch)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300]
