"""A captured method as something to call, beside the method that it was captured from.

Whatever the graph raises, the method itself is asked then: an error is the model's own.
Shapes: B rows, U users, F features.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchrec_handler.kernels.graph.blocks import Runner
from torchrec_handler.kernels.graph.capture import Batch, Captured, flatten
from torchrec_handler.kernels.graph.lookups import as_torch, place_lookups
from torchrec_handler.kernels.graph.packing import pack
from torchrec_handler.kernels.graph.program import Program, aten
from torchrec_handler.kernels.graph.sites import CannotCapture
from torchrec_handler.kernels.graph.trials import Trial, differs, share
from torchrec_handler.kernels.graph.user import CannotShare, Shared, split_user
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.options import DenseDtype, KernelDtype

logger = logging.getLogger(__name__)

building = threading.Lock()
"""Of one model's graphs, shapes are found out by one thread at a time."""

MOST_SHARED = 8
"""Programs for shared inputs, of each method; what is shared beyond them is looked up once."""

TOLERANCES: Mapping[KernelDtype, float] = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2}
"""How far apart outputs may be, see `trials.differs`."""

EVERY = [(1, float("inf"))]
"""The range of a method that is faster throughout."""

LEAST_TRIED = 7
USERS_TRIED = 2
"""Rows at least, and users, of the batch that a program for shared inputs is tried on."""

LEAST_IDS = 2
"""In each input: who follows a method takes it for known that a length is neither 0 nor 1."""

MOST_KEPT = 4
"""Batches that a part is tried on when its weights change."""

FEW = 3
"""Rows of a block when blocks are tried."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A method, captured and made smaller, not bound to anything yet."""

    qualname: str
    captured: Captured
    method: Callable[[Batch], Any]
    """The module's own."""
    whole: Captured | None = None
    """As it was captured, before it was made smaller; None where nobody will ask for it."""


def _copy_constants(program: Program) -> None:
    """Who is given a constant may write to it."""
    output = program.output
    with program.before(output):
        output.args = (
            tuple(
                program.emit(aten.clone.default, one) if one.op == "get_attr" else one
                for one in output.args[0]
            ),
        )


class GraphMethod:
    """A graph in place of a method, for batches of the sizes at which it is no slower."""

    def __init__(self, graph: Graph, target: Target) -> None:
        """Pack its layers and bind its lookups, which have their rows."""
        self.qualname = graph.qualname
        self.method = graph.method
        self._captured, self.target, self.whole = graph.captured, target, graph.whole
        self.dtype: DenseDtype = "float32"
        """The least precise type that it computes in."""
        self._is_whole = False
        self._run = self._finish(graph.captured.program.copy())
        self._names = graph.captured.names
        self._keys = [name for name, position in self._names if position is None]
        self._untried = {
            name: set(range(LEAST_IDS)) for name in self._keys if name.endswith(".values")
        }
        """Input of ids -> how many of them it is not known to take."""
        self._is_flat = len(self._keys) == len(self._names)
        self._unflatten = _unflatten(graph.captured.spec)
        self._rows_in, self._per_row = _rows_in(graph.captured)
        self.ranges: list[tuple[int, float]] = []
        """Least and most rows of batches that it takes."""
        self._shared: dict[Any, Callable[..., Any] | None] = {}
        self.trials: Sequence[Trial] = ()
        """What it was tried on."""

    def __call__(self, batch: Batch) -> Any:
        """What the method gives."""
        if self.is_untried(batch):
            return self.method(batch)
        if self.ranges != EVERY:
            rows = self._count(batch)
            if not any(least <= rows <= most for least, most in self.ranges):
                return self.method(batch)
        try:
            return self.compute(batch)
        except Exception:
            logger.debug("kernels: graph raised, %s is called", self.qualname, exc_info=True)
            return self.method(batch)

    def is_untried(self, batch: Any) -> bool:
        """Whether an input has so few ids that what the graph gives may be another thing."""
        return any(len(batch[name]) in few for name, few in self._untried.items())

    def took(self, batch: Any) -> None:
        """Remember that it gives what the method gives, of so few ids as well."""
        for name, few in self._untried.items():
            few.discard(len(batch[name]))

    def is_like(self, other: "GraphMethod") -> None:
        """Take the batches that another one takes, of the same method with other weights."""
        self.ranges, self.trials = other.ranges, other.trials
        self._untried = {name: set(few) for name, few in other._untried.items()}  # noqa: SLF001
        if other._is_whole:  # noqa: SLF001
            self.stay_whole()

    def stay_whole(self) -> bool:
        """Compute in no blocks any more; whether it did."""
        was_whole, self._is_whole = self._is_whole, True
        self._run.stay_whole()
        return not was_whole and self._run.block > 0

    def compute(self, batch: Batch) -> Any:
        """What the graph gives."""
        return self._unflatten(self._run(*self._tensors(batch)))

    def _tensors(self, batch: Any) -> list[torch.Tensor]:
        """In the order in which the method was followed, whatever that of the batch is."""
        if self._is_flat:
            return [batch[key] for key in self._keys]
        return [
            batch[name] if position is None else batch[name][position]
            for name, position in self._names
        ]

    def tried(self, batch: Batch, rows: int) -> list[torch.Tensor]:
        """What the graph gives; of some rows in blocks, to see that none reaches another."""
        block = self._run.block
        self._run.block = FEW if block and not self._is_whole and FEW < rows <= FEW**2 else block
        try:
            return pytree.tree_leaves(self.compute(batch))
        finally:
            self._run.block = block

    def stay_alone(self) -> None:
        """Keep nothing of what `shared` makes programs of, which nobody may ask for then.

        Of what it was tried on the smallest batches, for other weights.
        """
        del self._captured
        self.trials = self.trials[:MOST_KEPT]

    def shared(self, shared: Shared) -> Callable[..., Any] | None:
        """How to compute requests of which some inputs are there once for all their rows.

        Args:
            shared: input -> which of its features [F], None for all of a dense one.

        Returns:
            What takes the batch of candidates, in which the tensors of inputs that are shared as
            a whole are not read, the batch of users, and the user of each row [B]; None where
            that cannot be.
        """
        key = tuple(
            (name, None if mask is None else mask.tobytes()) for name, mask in shared.items()
        )
        if key not in self._shared:
            if len(self._shared) >= MOST_SHARED:
                return None
            with building:
                self._shared[key] = self._made(shared)
        return self._shared[key]

    def _made(self, shared: Shared) -> Callable[..., Any] | None:
        try:
            compute = self._shared_program(shared)
            why = self._shared_differs(compute, shared)
        except CannotShare as error:
            why = str(error)
        except Exception as error:
            logger.warning("kernels: sharing raised on %s", self.qualname, exc_info=True)
            why = f"raised {type(error).__name__}"
        if why is None:
            return compute
        logger.warning(
            "%s: what requests share of %s is computed row by row: %s",
            self.qualname,
            ", ".join(shared),
            why,
        )
        return None

    def _shared_program(self, shared: Shared) -> Callable[..., Any]:
        program, users = split_user(self._captured, shared)
        run = self._finish(program)

        def compute(items: Batch, of_users: Batch, index: torch.Tensor) -> Any:
            given, own = self._tensors(items), flatten(of_users)
            tensors = dict(zip(own[0], own[1], strict=True))
            chosen = [tensors[self._names[position]] for position in users]
            for name, few in self._untried.items():
                lists = [batch[name] for batch in (items, of_users) if name in batch]
                if max(map(len, lists)) in few:
                    message = f"{name} holds too few ids"
                    raise CannotShare(message)
            return self._unflatten(run(*given, *chosen, index))

        return compute

    def _shared_differs(self, compute: Callable[..., Any], shared: Shared) -> str | None:
        """See that it gives what the method gives, for two users of several rows each."""
        rows, batch, _ = next(trial for trial in self.trials if trial.rows >= LEAST_TRIED)
        index = torch.arange(rows) * USERS_TRIED // rows
        firsts = [int((index == user).nonzero()[0]) for user in range(USERS_TRIED)]
        whole, items, users = share(batch, shared, firsts, index)
        received = pytree.tree_leaves(compute(items, users, index))
        expected = pytree.tree_leaves(dict(self.method(whole)))
        return differs(expected, received, rows, TOLERANCES[self.target.dtype])

    def _finish(self, program: Any) -> Runner:
        _copy_constants(program)
        self.dtype = pack(program, self.target)
        place_lookups(program, self._captured.sites)
        as_torch(program)
        run = Runner(program, self._captured.rows)
        if self._is_whole:
            run.stay_whole()
        return run

    def _count(self, batch: Any) -> int:
        name, position = self._rows_in
        found = batch[name] if position is None else batch[name][position]
        return int(found.shape[0]) // self._per_row


def _unflatten(spec: pytree.TreeSpec) -> Callable[[Sequence[torch.Tensor]], Any]:
    """How a dict is made of outputs."""
    if spec.type is dict and all(child.is_leaf() for child in spec.children()):
        keys = list(spec.context)
        return lambda found: dict(zip(keys, found, strict=True))
    return lambda found: pytree.tree_unflatten(list(found), spec)


def _rows_in(captured: Captured) -> tuple[tuple[str, int | None], int]:
    """Where to read B: an input, and how many elements of its first axis a row has."""
    for node, name in zip(captured.program.inputs, captured.names, strict=True):
        size = captured.program.shape(node)[0]
        per_row = size / captured.rows
        if getattr(per_row, "is_Integer", False):
            return name, int(per_row)
    message = "no input tells the number of rows"
    raise CannotCapture(message)
