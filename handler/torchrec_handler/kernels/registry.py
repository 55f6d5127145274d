"""Last step but one of loading: the kernels in order, and one walk that offers modules to them."""

import logging
from collections.abc import Sequence

import torch

from torchrec_handler.archive.format import Declined, Replaced, Report
from torchrec_handler.errors import OptionError
from torchrec_handler.kernels.crossnet import CrossNetKernel
from torchrec_handler.kernels.direct import DirectKernel
from torchrec_handler.kernels.dlrm import DlrmKernel
from torchrec_handler.kernels.kernel import (
    OWN_FORWARD,
    Forward,
    Kernel,
    Target,
    has_own_forward,
    typename,
)
from torchrec_handler.kernels.linear import LinearKernel
from torchrec_handler.options import ALL, GRAPH, ONCE, Kernels
from torchrec_handler.tables.find import is_collection

logger = logging.getLogger(__name__)

KERNELS: Sequence[Kernel] = (DlrmKernel(), CrossNetKernel(), LinearKernel(), DirectKernel())
"""Most wanted first: the first one that takes a module has it."""


def check_names(kernels: Kernels) -> None:
    """See that all names in `kernels.off` are known.

    Raises:
        OptionError: one is not; lists those that are.
    """
    known = [GRAPH, *(kernel.name for kernel in KERNELS), ONCE]
    unknown = [name for name in kernels.off if name not in known] if kernels.off != ALL else []
    if unknown:
        message = (
            f"torchrec.kernels.off: received {', '.join(map(repr, unknown))}, "
            f"expected {ALL!r} or a list of {', '.join(known)}"
        )
        raise OptionError(message)


def replace_forwards(module: torch.nn.Module, target: Target, kernels: Kernels) -> Report:
    """Give the modules that a kernel takes its forward, the outermost of each nest.

    Args:
        module: ready to serve.
        target: where, and how precisely.
        kernels: which of `KERNELS` are left out.

    Returns:
        What was replaced, and what kernels had to leave as it was.
    """
    walk = _Walk(target, [kernel for kernel in KERNELS if kernels.allow(kernel.name)])
    walk.enter(module, "", frozenset(), is_inside=False)
    for found, forward in walk.forwards.items():
        setattr(found, "forward", forward.call)  # noqa: B010  this module's own, not its class's
    return Report(replaced=tuple(walk.replaced), declined=tuple(walk.declined))


Said = frozenset[tuple[str, str]]
"""Kernel and reason: what was said of the modules around."""


class _Walk:
    def __init__(self, target: Target, kernels: Sequence[Kernel]) -> None:
        self._target, self._kernels = target, kernels
        self._seen: set[torch.nn.Module] = set()
        self.forwards: dict[torch.nn.Module, Forward] = {}
        self.replaced: list[Replaced] = []
        self.declined: list[Declined] = []

    def enter(self, module: torch.nn.Module, path: str, said: Said, *, is_inside: bool) -> None:
        """Offer a module to the kernels, and then what of it is still called as a module.

        Of what is inside of a collection only other collections are offered: all else there is part
        of a lookup.
        """
        if module in self._seen:
            return
        self._seen.add(module)
        of_collection = is_collection(module)
        if of_collection or not is_inside:
            said = self._offer(module, path, said)
        if module in self.forwards:
            inner = [(name, module.get_submodule(name)) for name in self.forwards[module].calls]
        else:
            inner = list(module.named_children())
        for name, child in inner:
            child_path = f"{path}.{name}" if path else name
            self.enter(child, child_path, said, is_inside=is_inside or of_collection)

    def _offer(self, module: torch.nn.Module, path: str, said: Said) -> Said:
        for kernel in self._kernels:
            answer = self._ask(kernel, module, path)
            if isinstance(answer, Forward):
                self.forwards[module] = answer
                self.replaced.append(
                    Replaced(
                        path=path, type=typename(module), kernel=kernel.name, dtype=answer.dtype
                    )
                )
                return said
            # What holds for the whole is not said again of each part.
            if answer is not None and (kernel.name, answer) not in said:
                said |= {(kernel.name, answer)}
                self.declined.append(Declined(path=path, kernel=kernel.name, why=answer))
        return said

    def _ask(self, kernel: Kernel, module: torch.nn.Module, path: str) -> Forward | str | None:
        try:
            answer = kernel.offer(module, self._target)
        except Exception as error:
            logger.warning("kernels: %s raised on %s", kernel.name, path, exc_info=True)
            return f"raised {type(error).__name__}: {error}"
        return OWN_FORWARD if isinstance(answer, Forward) and has_own_forward(module) else answer
