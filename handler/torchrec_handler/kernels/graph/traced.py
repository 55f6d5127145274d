"""A module that takes tensors as a graph of torch.fx, the lengths of their first axes left open.

It is followed as torch.export follows it, by operators before they are taken apart, without the
half of the time that torch.export spends on what nobody reads here.
Shapes: B rows, N ids.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._export.non_strict_utils import _NonStrictTorchFunctionHandler, _override_builtin_ops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch._utils import _functionalize_sync
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.runtime_assert import insert_deferred_runtime_asserts
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _pytree as pytree

from torchrec_handler.kernels.graph.following import as_if_exporting
from torchrec_handler.kernels.graph.lengths import (
    ROWS,
    Axis,
    Lengths,
    check_numbers,
    check_open,
    open_axes,
)
from torchrec_handler.kernels.graph.memory import writes
from torchrec_handler.kernels.graph.program import Program
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.state import as_it_was

WRITES = "it changes its buffers or inputs"


class Traced(NamedTuple):
    """A module as a graph, whose inputs are the tensors that it takes."""

    program: Program
    spec: pytree.TreeSpec
    """How what it gives is put together."""
    rows: Any
    """The expression that is B in shapes."""


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
    lengths = Lengths()
    mode = FakeTensorMode(shape_env=lengths, allow_non_fake_inputs=True, export=True)
    # Of shapes that are open, looking up what was found before takes longer than finding it again.
    mode.cache_enabled = False
    known = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    sizes = open_axes(mode, tensors, axes)
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
            check_numbers(lengths)
            insert_deferred_runtime_asserts(followed, lengths, "graph", export=True)
    check_open(lengths, symbols)
    _drop_modes(followed.graph)
    if writes(followed.graph):
        return None
    program = _bound(followed, list(known.values()), mode)
    return Traced(program, spec[-1], sizes[ROWS].node.expr)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300]


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
