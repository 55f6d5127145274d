"""Embedding collections cut out of a method: what stands for them while it is followed.

Shapes: B rows, F features, D width, N ids.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from torchrec_handler.kernels.graph.program import Site
from torchrec_handler.kernels.kernel import touched
from torchrec_handler.tables.find import is_collection
from torchrec_handler.tables.variable_batch import is_variable

LIBRARY: Any = torch.library.Library("torchrec_handler", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define(
    "look_up(Tensor values, Tensor lengths, Tensor? weights, int site, int features, int[] widths, "
    "bool is_pooled) -> Tensor[]"
)


@torch.library.register_fake("torchrec_handler::look_up", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _shapes(  # noqa: PLR0913, PLR0917  as the operator is called
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


look_up = torch.ops.torchrec_handler.look_up.default


class CannotCapture(Exception):
    """Why a method cannot be a graph."""

    stuck: frozenset[torch.nn.Module] = frozenset()
    """Modules of which each would be stuck at the same place if it was followed alone."""


@contextlib.contextmanager
def boundaries(
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


class Recorder(_StandIn):
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


class Boundary(_StandIn):
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
