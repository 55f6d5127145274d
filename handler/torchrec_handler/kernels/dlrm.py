"""TorchRec's DLRM in one piece: embeddings are looked up into the place where they interact.

Shapes: B rows, F sparse features, D their width, which is that of the embedded dense features too.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.kernels.direct import lookup, parts, why_not
from torchrec_handler.kernels.kernel import Forward, Target, not_for, touched, typename
from torchrec_handler.kernels.linear import chain
from torchrec_handler.kernels.packed import BLOCK_ROWS, FEW_ROWS, Layers
from torchrec_handler.kernels.products import Layer, half_precision
from torchrec_handler.options import PRECISIONS
from torchrec_handler.tables.once import find_shared
from torchrec_handler.tables.spread import spread_of
from torchrec_handler.tables.variable_batch import is_variable

DLRM = "torchrec.models.dlrm.DLRM"
SPARSE_ARCH = "torchrec.models.dlrm.SparseArch"
INTERACTION_ARCH = "torchrec.models.dlrm.InteractionArch"


class DlrmKernel:
    """DLRM as a whole; of other models with its SparseArch that one."""

    name = "dlrm"

    def offer(self, module: torch.nn.Module, target: Target) -> Forward | str | None:
        """See `Kernel`."""
        if typename(module) not in {DLRM, SPARSE_ARCH}:
            return None
        if why := not_for(target):
            return why
        if typename(module) == SPARSE_ARCH:
            return Forward(call=SparseArch(module), calls=("embedding_bag_collection",))
        layers = _layers(module)
        if isinstance(layers, str):
            return layers
        dlrm = Dlrm(module, *layers, target)
        return Forward(call=dlrm, dtype=dlrm.dtype, calls=("sparse_arch",))


def _layers(model: Any) -> tuple[list[Layer], list[Layer]] | str:
    """Those of DLRM's `dense_arch` and `over_arch`; why not, where it is not all as TorchRec's."""
    found = []
    for name in ("dense_arch", "over_arch"):
        layers = chain([getattr(model, name)])
        if not layers or isinstance(layers, str):
            return f"its {name}: {layers or 'is not of linear layers and ReLU alone'}"
        found.append(layers)
    for part, expected in ((model.sparse_arch, SPARSE_ARCH), (model.inter_arch, INTERACTION_ARCH)):
        if typename(part) != expected:
            return f"holds a {typename(part)}, expected {expected}"
    for part in (*model.sparse_arch.modules(), model.inter_arch):
        if why := touched(part):
            return why
    bottom, top = found
    return bottom, top


class Dlrm:
    """DLRM.forward: dense features [B, N] and sparse features to logits [B, M] float32."""

    def __init__(
        self, model: Any, bottom: Sequence[Layer], top: Sequence[Layer], target: Target
    ) -> None:
        """Bind to a model.

        Args:
            model: torchrec.models.dlrm.DLRM; its lookups have their rows.
            bottom: the layers of its `dense_arch`.
            top: the layers of its `over_arch`.
            target: how precisely to compute; of products as of the layer that reads them.
        """
        self._sparse_arch = model.sparse_arch
        self._names = list(model.sparse_arch.sparse_feature_names)
        self._width = model.sparse_arch.D
        self._direct = cache(self._lookup)
        self._bottom = Layers(bottom, target.dtype, target.choice)
        self._top = Layers(top, target.dtype, target.choice)
        self.dtype = max(self._bottom.dtype, self._top.dtype, key=PRECISIONS.index)
        self._interact = _interaction(1 + model.inter_arch.F)

    def __call__(
        self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor
    ) -> torch.Tensor:
        """What DLRM.forward gives."""
        if dense_features.shape[0] < FEW_ROWS:
            embedded = self._embed(sparse_features, torch.float32)
            return self._top.few(self._interact(self._bottom.few(dense_features), embedded))
        joined = self._embed(sparse_features, half_precision(self._top.limits[0]))
        dense = self._bottom(dense_features)
        blocks = zip(torch.split(dense, BLOCK_ROWS), torch.split(joined, BLOCK_ROWS), strict=True)
        return torch.cat([self._top(self._interact(*block)) for block in blocks])

    def _embed(self, features: KeyedJaggedTensor, dtype: torch.dtype) -> torch.Tensor:
        """[B, (1 + F) * D], of which the first D columns are left open."""
        direct = self._direct(dtype)
        if (
            direct is not None
            and features.keys() == self._names
            and not is_variable(features)
            and find_shared(features) is None
        ):
            return direct(features)
        found = self._sparse_arch(features).flatten(1)
        rows, columns = found.shape
        joined = torch.empty((rows, self._width + columns), dtype=dtype)
        joined[:, self._width :] = found
        return joined

    def _lookup(self, dtype: torch.dtype) -> Callable[[KeyedJaggedTensor], torch.Tensor] | None:
        """The lookup of all features in their order, if there is one."""
        bags = self._sparse_arch.embedding_bag_collection
        if why_not(bags) or spread_of(bags) or len(bags.tbes_configs()) > 1:
            return None
        ((operator, group),) = bags.tbes_configs().items()
        if group.feature_names() != self._names:
            return None
        if set(group.embedding_dims()) != {self._width}:
            return None
        call = lookup(operator, room=self._width, dtype=dtype)
        return lambda features: call(*parts(features, is_weighted=group.is_weighted))


def _interaction(features: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """InteractionArch.forward, with all features in one tensor whose first place is open."""
    first, second = torch.triu_indices(features, features, offset=1)
    pairs = first * features + second

    def run(dense: torch.Tensor, joined: torch.Tensor) -> torch.Tensor:
        """[B, D] float32 and [B, (1 + F) * D] to [B, D + F + F choose 2] float32."""
        rows, width = dense.shape
        joined[:, :width] = dense
        embedded = joined.view(rows, -1, width)
        products = torch.bmm(embedded, embedded.transpose(1, 2)).view(rows, -1).float()
        return torch.cat((dense, products.index_select(1, pairs)), dim=1)

    return run


class SparseArch:
    """Pooled embeddings [B, F, D], not taken apart where they come in the order they are for."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """What SparseArch.forward gives."""
        module = self._module
        found = module.embedding_bag_collection(features)
        names = module.sparse_feature_names
        if found.keys() == names:
            values = found.values()
        else:
            values = torch.cat([found[name] for name in names], dim=1)
        embedded: torch.Tensor = values.reshape(-1, module.F, module.D)
        return embedded
