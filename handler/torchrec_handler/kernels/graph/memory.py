"""What operators write to, and whose memory they give."""

from collections.abc import Mapping
from typing import Any

import torch

from torchrec_handler.kernels.graph.program import aten

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


def writes(graph: Any) -> bool:
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
