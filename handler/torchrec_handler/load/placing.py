"""Last step but one of loading: kernels and graphs put in place, in the types of a choice.

`auto` is decided at a build, which puts them in place and takes them out again; a worker does as
the archive says, but for types that its processor has no instructions for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from torchrec_handler.archive.format import Declined, DenseDtypes, Report
from torchrec_handler.errors import OptionError
from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.graph.method import GraphMethod
from torchrec_handler.kernels.graph.part import PartForward
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.linear import LinearKernel
from torchrec_handler.kernels.products import INSTRUCTIONS, is_fast
from torchrec_handler.kernels.registry import replace_forwards
from torchrec_handler.load.graphs import Graphs
from torchrec_handler.load.weights import checkpoint_root
from torchrec_handler.options import AUTO, GRAPH, KERNEL_DTYPES, KernelDtype, Options


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What was put in place."""

    graphs: Mapping[str, GraphMethod]
    """Methods that are computed as graphs, by their names."""
    parts: Mapping[str, PartForward]
    """Modules of other methods that are, by their paths."""
    report: Report
    dense: DenseDtypes | None = None
    """What was decided by layer."""


class Placing:
    """The kernels and graphs of a module that is ready but for them."""

    def __init__(
        self, module: torch.nn.Module, graphs: Graphs, options: Options, target: Target
    ) -> None:
        self.module, self.options = module, options
        self.signature = graphs.trials.signature
        self._graphs, self._target = graphs, target
        self._in_place = Report()

    def choice(self, dtypes: Mapping[str, KernelDtype], *, is_open: bool = False) -> Choice:
        """Types by the names of the module's parameters, as a checkpoint names them."""
        parameters = checkpoint_root(self.module)[1].named_parameters()
        return Choice(parameters, dtypes, is_open=is_open)

    def put(self, choice: Choice | None = None) -> Placed:
        """Take out what is in place, and put kernels and graphs in place.

        Args:
            choice: by layer; None: as the options say.
        """
        self._take_out()
        target = self._target
        if choice:
            target = replace(target, dtype=choice.least, choice=choice)
        report = replace_forwards(self.module, target, self.options.kernels)
        methods, parts, self._in_place = self._graphs.put_in_place(report, target)
        return Placed(graphs=methods, parts=parts, report=self._in_place)

    def put_decided(self, dense: DenseDtypes) -> Placed:
        """Do as an archive says: a layer that this processor cannot compute so is in float32."""
        dtypes: dict[str, KernelDtype] = {}
        declined = []
        for name, dtype in dense.dtypes.items():
            known: KernelDtype = next(one for one in KERNEL_DTYPES if one == dtype)
            dtypes[name] = known if known == "float32" or is_fast(known) else "float32"
            if dtypes[name] != dtype:
                why = (
                    f"is in float32, not in {dtype} as the build decided: this processor has "
                    f"no kernel for it, which takes one of {', '.join(INSTRUCTIONS[known])}"
                )
                declined.append(Declined(path=name, kernel=LinearKernel.name, why=why))
        placed = self.put(self.choice(dtypes))
        report = replace(placed.report, declined=(*placed.report.declined, *declined))
        return replace(placed, report=report, dense=dense)

    def _take_out(self) -> None:
        for one in self._in_place.replaced:
            if one.kernel == GRAPH and one.path in vars(self.module):  # a method
                delattr(self.module, one.path)
            else:  # of a module that a kernel replaced and a graph around that, once
                vars(self.module.get_submodule(one.path)).pop("forward", None)
        self._in_place = Report()


Choose = Callable[[Placing], Placed]
"""How kernels are put in place."""


def as_recorded(dense: DenseDtypes | None) -> Choose:
    """What a worker does.

    Args:
        dense: what the build decided, if it did.

    Raises:
        OptionError: when it is called: a build was to decide, and none did.
    """

    def choose(placing: Placing) -> Placed:
        if placing.options.dense.dtype != AUTO:
            return placing.put()
        if dense is None:
            message = (
                f"torchrec.dense.dtype: received {AUTO!r}, which a build decides and writes into "
                "the archive, but this archive holds no decision; build it with torchrec-archiver, "
                "or name a type"
            )
            raise OptionError(message)
        return placing.put_decided(dense)

    return choose
