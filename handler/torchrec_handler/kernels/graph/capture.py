"""A method of a predict module as a graph, with embedding collections cut out of it.

`torch.export` follows the method once, with B left open. What a collection gives is a node of its
own, which names the site; inside of it nothing is followed.
Shapes: B rows, F features, D width, N ids.
"""

import builtins
import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim
from torch.fx import config
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree
from torchrec.inference.modules import PredictModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from torchrec_handler.kernels.graph.program import Program, Site
from torchrec_handler.kernels.kernel import touched
from torchrec_handler.tables.find import is_collection
from torchrec_handler.tables.variable_batch import is_variable

Batch = Mapping[str, torch.Tensor | list[torch.Tensor]]

LIBRARY: Any = torch.library.Library("torchrec_handler", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define(
    "look_up(Tensor values, Tensor lengths, Tensor? weights, int site, int features, int[] widths, "
    "bool is_pooled) -> Tensor[]"
)


@torch.library.register_fake("torchrec_handler::look_up", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _look_up(  # noqa: PLR0913, PLR0917  as the operator is called
    values: torch.Tensor,
    lengths: torch.Tensor,
    weights: torch.Tensor | None,  # noqa: ARG001
    site: int,  # noqa: ARG001
    features: int,
    widths: Sequence[int],
    is_pooled: bool,  # noqa: FBT001
) -> list[torch.Tensor]:
    """Shapes of what a site gives: [B, D], or of each embedding [N, D] and lengths [B]."""
    rows = lengths.shape[0] // features
    if is_pooled:
        return [values.new_empty((rows, sum(widths)), dtype=torch.float32)]
    context = torch.library.get_ctx()
    found = []
    for width in widths:
        ids = context.new_dynamic_size()
        found += [
            values.new_empty((ids, width), dtype=torch.float32),
            lengths.new_empty((rows,)),
        ]
    return found


CHATTY = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch.fx._symbolic_trace")

look_up = torch.ops.torchrec_handler.look_up.default


aten = torch.ops.aten

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


class CannotCapture(Exception):
    """Why a method cannot be a graph."""


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
    with _boundaries(module, lambda inner: _Recorder(inner, sites)):
        _call(module, qualname, batch)
    rows = Dim("rows")
    dims = [_dims(name, features, rows) for name, _ in names]
    calls = iter(range(len(sites)))
    method = _Method(module, qualname, names)
    try:
        with (
            _boundaries(module, lambda inner: _Boundary(inner, sites, calls)),
            _masks_as_they_are(),
            _open_lengths(module),
            _quiet(),
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
            constant = program.constant(tensor.detach())
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


@contextlib.contextmanager
def _masks_as_they_are() -> Iterator[None]:
    """Keep nn.TransformerEncoder from looking into a mask, whose numbers nobody knows yet.

    What it would find out only tells attention that the mask which it is given is causal.
    """
    detect = transformer._detect_is_causal_mask  # noqa: SLF001

    def told(
        mask: torch.Tensor | None,  # noqa: ARG001
        is_causal: bool | None = None,  # noqa: FBT001
        size: int | None = None,  # noqa: ARG001
    ) -> bool:
        return bool(is_causal)

    transformer._detect_is_causal_mask = told  # noqa: SLF001
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect  # noqa: SLF001


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what torch tells of the way; what it ends at is told.

    A stack trace for every node would take a sixth of the time.
    """
    emits_none, config.do_not_emit_stack_traces = config.do_not_emit_stack_traces, True
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        config.do_not_emit_stack_traces = emits_none
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _open_lengths(module: torch.nn.Module) -> Iterator[None]:
    """Let `len` of a tensor be left open; python's own can only give a number.

    Modules that came out of a torch.package have builtins of their own.
    """
    own = vars(builtins)
    of_parts = [
        getattr(type(part).forward, "__globals__", {}).get("__builtins__")
        for part in module.modules()
    ]
    # Everybody's `len` is slower while that lasts, so it is left alone where it can be.
    found = [names for names in of_parts if isinstance(names, dict) and names is not own] or [own]
    known = {id(names): names for names in found}
    plain = len

    def open_len(given: Any) -> Any:
        return given.shape[0] if isinstance(given, torch.Tensor) else plain(given)

    for names in known.values():
        names["len"] = open_len
    try:
        yield
    finally:
        for names in known.values():
            names["len"] = plain


@contextlib.contextmanager
def _boundaries(
    module: torch.nn.Module, make: Callable[[torch.nn.Module], torch.nn.Module]
) -> Iterator[None]:
    """Put something in place of every collection, the outermost of each nest."""
    swapped: list[tuple[dict[str, Any], str, torch.nn.Module]] = []
    made: dict[torch.nn.Module, torch.nn.Module] = {}

    def enter(outer: torch.nn.Module, seen: set[torch.nn.Module]) -> None:
        seen.add(outer)
        modules: dict[str, Any] = outer._modules  # noqa: SLF001
        for name, child in list(modules.items()):
            if child is None:
                continue
            if is_collection(child):
                if child not in made:
                    made[child] = make(child)
                modules[name] = made[child]
                swapped.append((modules, name, child))
            elif child not in seen:
                enter(child, seen)

    enter(module, set())
    try:
        yield
    finally:
        for modules, name, child in swapped:
            modules[name] = child


class _StandIn(torch.nn.Module):
    """Answers as a collection does, which is no part of it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "inner", inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Recorder(_StandIn):
    """Calls the collection, and notes what it takes and gives."""

    def __init__(self, inner: torch.nn.Module, sites: list[Site]) -> None:
        super().__init__(inner)
        object.__setattr__(self, "sites", sites)

    def forward(self, features: KeyedJaggedTensor, *others: Any, **named: Any) -> Any:
        """What the collection gives."""
        if others or named or not isinstance(features, KeyedJaggedTensor):
            message = "it calls a collection with more than a KeyedJaggedTensor"
            raise CannotCapture(message)
        if is_variable(features):
            message = "features have batches of their own"
            raise CannotCapture(message)
        found = self.inner(features)
        self.sites.append(_site(self.inner, features, found))
        return found


class _Boundary(_StandIn):
    """Stands for the collection in the graph."""

    def __init__(self, inner: torch.nn.Module, sites: Sequence[Site], calls: Iterator[int]) -> None:
        super().__init__(inner)
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "calls", calls)

    def forward(self, features: KeyedJaggedTensor) -> Any:
        """What the site gave, of tensors that nobody looked up."""
        number = next(self.calls)
        site = self.sites[number]
        if features.keys() != site.keys or is_variable(features):
            message = "a collection is given other features at another call"
            raise CannotCapture(message)
        parts = look_up(
            features.values(),
            features.lengths(),
            features.weights() if site.is_weighted else None,
            number,
            len(site.keys),
            site.widths,
            site.is_pooled,
        )
        if site.is_pooled:
            return KeyedTensor(keys=site.names, length_per_key=site.widths, values=parts[0])
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return {
            name: JaggedTensor(values=values, lengths=lengths)
            for name, (values, lengths) in zip(site.names, pairs, strict=True)
        }


def _site(module: Any, features: KeyedJaggedTensor, found: Any) -> Site:
    keys = features.keys()
    is_weighted = features.weights_or_none() is not None
    if isinstance(found, KeyedTensor):
        names, widths = found.keys(), found.length_per_key()
        tensors = [found.values()]
    elif isinstance(found, Mapping) and all(
        isinstance(one, JaggedTensor) and one.weights_or_none() is None for one in found.values()
    ):
        names = list(found)
        tensors = [one.values() for one in found.values()]
        widths = [tensor.shape[-1] for tensor in tensors]
    else:
        message = f"a collection gives a {type(found).__name__}"
        raise CannotCapture(message)
    sources = [name.partition("@")[0] for name in names]
    if any(source not in keys for source in sources):
        message = "a collection gives embeddings of features that it was not given"
        raise CannotCapture(message)
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        message = "lookups give another type than float32"
        raise CannotCapture(message)
    return Site(
        module=module,
        keys=list(keys),
        is_weighted=is_weighted,
        names=list(names),
        widths=list(widths),
        sources=[keys.index(source) for source in sources],
        is_pooled=isinstance(found, KeyedTensor),
        is_plain=touched(module) is None,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300]
