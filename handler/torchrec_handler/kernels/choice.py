"""Which type each layer may compute in, where that was decided layer by layer.

A layer is known by the parameters that its weights are made of, and these by their names: so it is
the same decision whichever kernel takes the layer, and whatever a graph makes of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch

from torchrec_handler.options import PRECISIONS, KernelDtype


class Chosen(Protocol):
    """What computes in the types of a choice: `packed.Layers`."""

    layers: Sequence[Any]
    """Of `products.Layer`."""

    def choose(self) -> None:
        """Look at the choice again."""


class Choice:
    """Names of parameters, and the least precise type that layers of them may compute in."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.Tensor]],
        dtypes: Mapping[str, KernelDtype],
        *,
        is_open: bool = False,
    ) -> None:
        """Decide.

        Args:
            parameters: of the module that is served, by their names.
            dtypes: name -> type; layers of any other parameter compute in float32.
            is_open: whether the choice may be changed.
        """
        self._names = {_key(value): name for name, value in parameters if value.dim() > 1}
        self._dtypes = dtypes
        self.is_open = is_open
        self.watching: WeakSet[Chosen] = WeakSet()
        """Who computes as an open choice says."""

    @property
    def least(self) -> KernelDtype:
        """The least precise type of any layer."""
        return max(self._dtypes.values(), key=PRECISIONS.index, default="float32")

    def names(self, sources: Sequence[torch.Tensor]) -> frozenset[str]:
        """What is known of the parameters that a layer's weights are made of."""
        found = map(self._names.get, map(_key, sources))
        return frozenset(name for name in found if name is not None)

    def of(self, sources: Sequence[torch.Tensor]) -> KernelDtype:
        """The least precise type for a layer: of several parameters the most precise one's."""
        dtypes = (self._dtypes.get(name, "float32") for name in self.names(sources))
        return min(dtypes, key=PRECISIONS.index, default="float32")

    def change(self, dtypes: Mapping[str, KernelDtype]) -> None:
        """Decide otherwise, where the choice is open."""
        self._dtypes = dtypes
        for one in list(self.watching):
            one.choose()


def _key(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
