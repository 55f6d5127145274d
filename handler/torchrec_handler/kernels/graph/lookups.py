"""Lookups of a graph: each site called without detours.

Shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.kernels.direct import Pooled, sequences, why_not
from torchrec_handler.kernels.graph.blocks import SITE
from torchrec_handler.kernels.graph.program import Program, Site, aten, is_call
from torchrec_handler.kernels.graph.rows import OPERATOR
from torchrec_handler.kernels.graph.sites import look_up


def site_call(site: Site) -> Callable[..., Any]:
    """How to look up at a site, called with values [N], lengths [F * B] and weights [N].

    Returns:
        Something that gives [B, D] in a list, or of each embedding [N, D] and lengths [B].
    """
    if site.is_plain:
        direct = _pooled(site) if site.is_pooled else _sequences(site)
        if direct:
            return direct
    module, keys, names, sources = site.module, site.keys, site.names, site.sources
    is_pooled, features = site.is_pooled, len(site.keys)

    def call(values: Any, lengths: Any, weights: Any) -> Any:
        given = KeyedJaggedTensor(keys=keys, values=values, lengths=lengths, weights=weights)
        found = module(given)
        if is_pooled:
            return [found.values()]
        of_feature = lengths.view(features, -1)
        parts = []
        for name, source in zip(names, sources, strict=True):
            parts += [found[name].values(), of_feature[source]]
        return parts

    return call


def _pooled(site: Site) -> Callable[..., Any] | None:
    if why_not(site.module):
        return None
    look_up = Pooled(site.module)
    columns = getattr(site.module, "_columns", None)
    if look_up.features != site.keys or look_up.is_weighted > site.is_weighted:
        return None
    is_weighted, offsets_of = look_up.is_weighted, torch.ops.fbgemm.asynchronous_complete_cumsum

    def pooled(values: Any, lengths: Any, weights: Any) -> Any:
        offsets = offsets_of(lengths).to(values.dtype)
        found = look_up(values, offsets, weights if is_weighted else None)
        return [found if columns is None else found.index_select(1, columns)]

    return pooled


def _sequences(site: Site) -> Callable[..., Any] | None:
    found = sequences(site.module)
    if found is None or found[0] != site.keys or sorted(site.sources) != [*range(len(site.keys))]:
        return None
    look_up, sources, features = found[1], site.sources, len(site.keys)
    offsets_of = torch.ops.fbgemm.asynchronous_complete_cumsum

    def one(values: Any, lengths: Any, _: Any) -> Any:
        return [look_up(values, offsets_of(lengths).to(values.dtype), None), lengths]

    def several(values: Any, lengths: Any, _: Any) -> Any:
        found = look_up(values, offsets_of(lengths).to(values.dtype), None)
        of_feature = lengths.view(features, -1)
        pieces = torch.split(found, of_feature.sum(dim=1).tolist())
        return [part for at in sources for part in (pieces[at], of_feature[at])]

    return one if features == 1 else several


def place_lookups(program: Program, sites: Sequence[Site]) -> None:
    """Let a graph call the sites."""
    for node in program.nodes:
        if is_call(node, look_up):
            values, lengths, weights, number, *_ = node.args
            with program.before(node):
                call = program.graph.call_function(
                    site_call(sites[number]), (values, lengths, weights)
                )
            call.meta |= {**node.meta, SITE: True}
            program.replace(node, call)


TORCH: Mapping[Any, Any] = {
    aten.cat.default: torch.cat,
    aten.add.Tensor: torch.add,
    aten.mul.Tensor: torch.mul,
    aten.sub.Tensor: torch.sub,
    aten.div.Tensor: torch.div,
    aten.sigmoid.default: torch.sigmoid,
    aten.relu.default: torch.relu,
    aten.softmax.int: torch.softmax,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze,
    aten.select.int: torch.select,
    aten.bmm.default: torch.bmm,
    aten.matmul.default: torch.matmul,
    aten.stack.default: torch.stack,
    aten.sum.dim_IntList: torch.sum,
    aten.layer_norm.default: torch.layer_norm,
    aten.transpose.int: torch.transpose,
    aten.permute.default: torch.permute,
    aten.view.default: torch.reshape,
    aten.reshape.default: torch.reshape,
    aten.unflatten.int: torch.unflatten,
    aten.narrow.default: torch.narrow,
    aten.clamp.default: torch.clamp,
    aten.clamp_min.default: torch.clamp_min,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.ge.Tensor: torch.ge,
    aten.lt.Tensor: torch.lt,
    aten.masked_fill.Scalar: torch.masked_fill,
    aten.linalg_vector_norm.default: torch.linalg.vector_norm,
    # Taken for dead code by its operator's name.
    aten._assert_async.default: torch._assert_async,  # noqa: SLF001
}


def as_torch(program: Program) -> None:
    """Call torch's own functions where that is faster than by the operator's name."""
    for node in program.nodes:
        found = TORCH.get(node.target)
        if found is not None and not node.kwargs:
            node.meta[OPERATOR] = node.target
            node.target = found
