"""The lengths of inputs' first axes, left open, and what a module asks of them and of numbers.

Shapes: B rows.
"""

import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch._dynamo.source import ConstantSource
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils._sympy.symbol import SymT, symbol_is_type

from torchrec_handler.kernels.graph.sites import CannotCapture

ROWS = "rows"
"""What an axis counts that has B places."""

LEAST = 2
"""Of a length that is open: to torch, 0 and 1 are other things."""


class Axis(NamedTuple):
    """The first axis of an input."""

    counted: str
    """What it counts; axes that count the same are as long."""
    times: int = 1
    """Places of each."""


class Lengths(ShapeEnv):
    """Remembers of no length which line of whose code asked for it, but of numbers which modules.

    A number is what a tensor holds, asked for by `item`, `tolist` and `if`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[Any, frozenset[torch.nn.Module]] = {}
        """Number -> modules that asked for it."""

    def _get_stack_summary(self, *_: Any, **__: Any) -> tuple[SLoc, str]:
        return SLoc(None, None), ""

    def create_unbacked_symint(self, *args: Any, **kwargs: Any) -> Any:
        """A whole number, see `asked`."""
        return self._asked_for(super().create_unbacked_symint(*args, **kwargs))

    def create_unbacked_symfloat(self, *args: Any, **kwargs: Any) -> Any:
        """Any number, see `asked`."""
        return self._asked_for(super().create_unbacked_symfloat(*args, **kwargs))

    def create_unbacked_symbool(self, *args: Any, **kwargs: Any) -> Any:
        """A truth, see `asked`."""
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


def open_axes(
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


def check_open(lengths: ShapeEnv, symbols: Mapping[Any, str]) -> None:
    """See that no branch was taken by the number of rows or ids."""
    names = {symbol: symbol.func(counted) for symbol, counted in symbols.items()}
    for guard in lengths.guards:
        if guard.expr.free_symbols & set(names):
            message = f"it does something else where not {guard.expr.xreplace(names)}"
            raise CannotCapture(message)


def check_numbers(lengths: ShapeEnv) -> None:
    """See that nothing is checked of a number which torch puts no assert into a graph for."""
    asserts = [one for found in lengths.deferred_runtime_asserts.values() for one in found]
    for one in asserts:
        if any(symbol_is_type(number, SymT.UNBACKED_FLOAT) for number in one.expr.free_symbols):
            message = f"it checks that {one.expr}, of a number that is no integer"
            raise CannotCapture(message)
