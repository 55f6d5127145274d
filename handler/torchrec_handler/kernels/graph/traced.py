"""A module that takes tensors as a graph of torch.fx, the lengths of their first axes left open.

It is followed as torch.export follows it, by operators before they are taken apart, without the
half of the time that torch.export spends on what nobody reads here.
Shapes: B rows, N ids.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._export.non_strict_utils import _NonStrictTorchFunctionHandler, _override_builtin_ops
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch._utils import _functionalize_sync
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.fx.passes.runtime_assert import insert_deferred_runtime_asserts
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _pytree as pytree
from torch.utils._sympy.symbol import SymT, symbol_is_type

from torchrec_handler.kernels.graph.following import as_if_exporting
from torchrec_handler.kernels.graph.program import Program, aten
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.state import as_it_was

ROWS = "rows"
"""What an axis counts that has B places."""

LEAST = 2
"""Of a length that is open: to torch, 0 and 1 are other things."""

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

WRITES = "it changes its buffers or inputs"


class Axis(NamedTuple):
    """The first axis of an input."""

    counted: str
    """What it counts; axes that count the same are as long."""
    times: int = 1
    """Places of each."""


class Traced(NamedTuple):
    """A module as a graph, whose inputs are the tensors that it takes."""

    program: Program
    spec: pytree.TreeSpec
    """How what it gives is put together."""
    rows: Any
    """The expression that is B in shapes."""


class _Lengths(ShapeEnv):
    """Remembers of no length which line of whose code asked for it, but of numbers which modules.

    A number is what a tensor holds, asked for by `item`, `tolist` and `if`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[Any, frozenset[torch.nn.Module]] = {}

    def _get_stack_summary(self, *_: Any, **__: Any) -> tuple[SLoc, str]:
        return SLoc(None, None), ""

    def create_unbacked_symint(self, *args: Any, **kwargs: Any) -> Any:
        return self._asked_for(super().create_unbacked_symint(*args, **kwargs))

    def create_unbacked_symfloat(self, *args: Any, **kwargs: Any) -> Any:
        return self._asked_for(super().create_unbacked_symfloat(*args, **kwargs))

    def create_unbacked_symbool(self, *args: Any, **kwargs: Any) -> Any:
        return self._asked_for(super().create_unbacked_symbool(*args, **kwargs))

    def _asked_for(self, made: Any) -> Any:
        asking = _modules(traceback.walk_stack(sys._getframe(1)))  # noqa: SLF001
        self.asked |= dict.fromkeys(made.node.expr.free_symbols, asking)
        return made

    def stuck(self, error: Exception) -> frozenset[torch.nn.Module]:
        """Modules that asked for the number themselves that they branch on."""
        if not isinstance(error, GuardOnDataDependentSymNode):
            return frozenset()
        found = _modules(traceback.walk_tb(error.__traceback__))
        for symbol in error.cond.free_symbols:
            found &= self.asked.get(symbol, frozenset())
        return found


def _modules(frames: Iterable[tuple[Any, int]]) -> frozenset[torch.nn.Module]:
    """Modules whose code is running."""
    owners = (frame.f_locals.get("self") for frame, _ in frames)
    return frozenset(one for one in owners if isinstance(one, torch.nn.Module))


def trace(module: torch.nn.Module, tensors: Sequence[torch.Tensor], axes: Sequence[Axis]) -> Traced:
    """Follow a module's forward.

    Args:
        module: it is left as it was.
        tensors: what it takes; their numbers are not read.
        axes: the first one of each tensor.

    Raises:
        CannotCapture: it does something else for other lengths, changes what it is given, or torch
            cannot follow it.
    """
    for is_functional in (False, True):
        with as_it_was(module):
            traced = _trace(module, tensors, axes, is_functional=is_functional)
        if traced:
            return traced
    raise CannotCapture(WRITES)


def _trace(
    module: torch.nn.Module,
    tensors: Sequence[torch.Tensor],
    axes: Sequence[Axis],
    *,
    is_functional: bool,
) -> Traced | None:
    """Follow it by the operators that it calls, or by some that write to nothing.

    Returns:
        None where something is written to.
    """
    lengths = _Lengths()
    mode = FakeTensorMode(shape_env=lengths, allow_non_fake_inputs=True, export=True)
    # Of shapes that are open, looking up what was found before takes longer than finding it again.
    mode.cache_enabled = False
    known = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    sizes = _open(mode, tensors, axes)
    symbols = {size.node.expr: counted for counted, size in sizes.items()}
    with mode:
        stand_ins = {one: _like(mode, one) for one in known.values()}
        inputs = [
            torch.empty((sizes[axis.counted] * axis.times, *one.shape[1:]), dtype=one.dtype)
            for one, axis in zip(tensors, axes, strict=True)
        ]
    spec: list[pytree.TreeSpec] = []

    def run(*given: torch.Tensor) -> tuple[Any, ...]:
        own, others = dict(zip(known, given, strict=False)), given[len(known) :]
        with _reparametrize_module(module, own, tie_weights=True, strict=True, stack_weights=True):
            found, made = pytree.tree_flatten(module(*others))
        spec.append(made)
        return tuple(found)

    given = [*(stand_ins[one] for one in known.values()), *inputs]
    call = _without_writing(run) if is_functional else run
    with mode, _NonStrictTorchFunctionHandler(), _override_builtin_ops(), as_if_exporting():
        try:
            with enable_python_dispatcher():
                followed = make_fx(call, pre_dispatch=True)(*given)
        except CannotCapture:
            raise
        except Exception as error:
            message = f"torch cannot follow it: {type(error).__name__}: {_first_line(error)}"
            cannot = CannotCapture(message)
            cannot.stuck = lengths.stuck(error)
            raise cannot from error
        if any(lengths.deferred_runtime_asserts.values()):
            _check_numbers(lengths)
            insert_deferred_runtime_asserts(followed, lengths, "graph", export=True)
    _check_open(lengths, symbols)
    _drop_modes(followed.graph)
    if _writes(followed.graph):
        return None
    program = _bound(followed, list(known.values()), mode)
    return Traced(program, spec[-1], sizes[ROWS].node.expr)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300]


def _open(
    mode: FakeTensorMode, tensors: Sequence[torch.Tensor], axes: Sequence[Axis]
) -> dict[str, Any]:
    """A length for each thing that is counted."""
    found: dict[str, Any] = {}
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    for tensor, axis in zip(tensors, axes, strict=True):
        if axis.counted not in found:
            example = torch.empty(max(LEAST, tensor.shape[0] // axis.times))
            stand_in = mode.from_tensor(
                example, symbolic_context=context, source=ConstantSource(axis.counted)
            )
            found[axis.counted] = stand_in.shape[0]
    if ROWS not in found:
        message = "no input tells the number of rows"
        raise CannotCapture(message)
    return found


def _like(mode: FakeTensorMode, given: torch.Tensor) -> torch.Tensor:
    """What stands for a parameter or buffer; the plain way takes a hundredth of torch's own."""
    if type(given) in {torch.Tensor, torch.nn.Parameter} and given.layout == torch.strided:
        return torch.empty_strided(
            given.shape, given.stride(), dtype=given.dtype, device=given.device
        )
    made: torch.Tensor = mode.from_tensor(given.detach(), static_shapes=True)
    return made


def _without_writing(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same by operators that write to nothing."""
    mode = FunctionalTensorMode(pre_dispatch=True, export=True)

    def functional(*given: torch.Tensor) -> Any:
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)  # noqa: SLF001
        with torch._C._ExcludeDispatchKeyGuard(key), mode:  # noqa: SLF001
            # A parameter of two modules is one.
            each = {id(one): FunctionalTensor.to_functional(one) for one in given}
            own: Any = [each[id(one)] for one in given]
            found = run(*own)
            if any(torch._functionalize_has_data_mutation(one.elem) for one in own):  # type: ignore[attr-defined]  # noqa: SLF001
                raise CannotCapture(WRITES)
            return tuple(map(_plain, found))

    return functional


def _plain(given: Any) -> Any:
    if not isinstance(given, FunctionalTensor):
        return given
    sync: Any = _functionalize_sync
    sync(given)
    return torch._from_functional_tensor(given.elem)  # noqa: SLF001


def _check_open(lengths: ShapeEnv, symbols: Mapping[Any, str]) -> None:
    """See that no branch was taken by the number of rows or ids."""
    names = {symbol: symbol.func(counted) for symbol, counted in symbols.items()}
    for guard in lengths.guards:
        if guard.expr.free_symbols & set(names):
            message = f"it does something else where not {guard.expr.xreplace(names)}"
            raise CannotCapture(message)


def _check_numbers(lengths: ShapeEnv) -> None:
    """See that nothing is checked of a number which torch puts no assert into a graph for."""
    asserts = [one for found in lengths.deferred_runtime_asserts.values() for one in found]
    for one in asserts:
        if any(symbol_is_type(number, SymT.UNBACKED_FLOAT) for number in one.expr.free_symbols):
            message = f"it checks that {one.expr}, of a number that is no integer"
            raise CannotCapture(message)


def _drop_modes(graph: Any) -> None:
    """Take out switches of gradients, which nobody wants here.

    Raises:
        CannotCapture: it switches something that changes what is computed.
    """
    for node in list(graph.nodes):
        if node.target is torch._C._set_grad_enabled:  # noqa: SLF001
            if node.args[0]:
                message = "it computes gradients"
                raise CannotCapture(message)
            graph.erase_node(node)
        elif node.target is torch.amp.autocast_mode._enter_autocast:  # noqa: SLF001
            message = "it switches autocast"
            raise CannotCapture(message)


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
        if beside and all(map(is_new, (node.args[0], *users[node.args[0]]))):
            node.target = beside
        left = left or node.target is not beside
    return left


def is_new(node: Any) -> bool:
    """Whether what a node gives shares no memory with what it takes."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        return False
    is_alias = any(one.alias_info for one in target._schema.returns)  # noqa: SLF001
    composite = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001
    may_alias = target.has_kernel_for_dispatch_key(composite) and target not in NEW
    return target in IN_PLACE or not (is_alias or may_alias)


def _bound(followed: Any, known: Sequence[torch.Tensor], mode: FakeTensorMode) -> Program:
    """A program that knows what does not change between calls."""
    for node in followed.graph.nodes:
        is_other = isinstance(node.target, torch._ops.HigherOrderOperator)  # noqa: SLF001
        is_part = node.op == "get_attr" and not isinstance(
            getattr(followed, node.target), torch.Tensor
        )
        if node.op in {"call_module", "call_method"} or is_part or is_other:
            message = f"it holds {node.target}, a part with a graph of its own"
            raise CannotCapture(message)
    program = Program(followed.graph, torch.nn.Module(), mode).copy()
    inputs = program.inputs
    constants = dict(zip(inputs, known, strict=False))
    for node in program.nodes:
        if node.op == "get_attr":
            constants[node] = getattr(followed, node.target)
    for node, tensor in constants.items():
        with program.graph.inserting_after(node):
            constant = program.constant(tensor.detach(), (tensor,))
        program.replace(node, constant)
    return program
