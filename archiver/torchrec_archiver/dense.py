"""Dense weights that a model cannot answer with: told before they are served as null."""

import logging
from collections.abc import Collection, Mapping

import torch

from torchrec_handler.errors import BuildError
from torchrec_handler.load.weights import checkpoint_root

logger = logging.getLogger(__name__)


def check_dense(
    dense: Mapping[str, torch.Tensor], module: torch.nn.Module, allowed: Collection[str]
) -> None:
    """See that the module holds what was saved, as finite numbers.

    Infinity is good in a buffer, as a mask of attention holds it; NaN is not.

    Args:
        dense: checkpoint name -> what will be loaded.
        module: the predict module, before it is loaded.
        allowed: names whose numbers need not be finite.

    Raises:
        BuildError: names the first entry of another kind of numbers, or that is not finite.
    """
    _, root = checkpoint_root(module)
    own = root.state_dict()
    parameters = {name for name, _ in root.named_parameters(remove_duplicate=False)}
    for name, value in dense.items():
        expected = own[name].dtype
        if not _is_held(value, expected):
            message = (
                f"weights: {name}: received {_named(value.dtype)}, expected {_named(expected)}"
            )
            raise BuildError(message)
        if value.is_meta or not expected.is_floating_point:
            continue
        held = value.to(expected).float()
        bad = ~held.isfinite() if name in parameters else held.isnan()
        if not bad.any():
            continue
        first = float(held[bad][0])
        message = f"weights: {name} holds {first:g} as {_named(expected)}, expected finite numbers"
        if name not in allowed:
            message += f"; --allow-invalid-rows {name} takes it as it is"
            raise BuildError(message)
        logger.warning("%s; it is taken as it is", message)


def _is_held(value: torch.Tensor, expected: torch.dtype) -> bool:
    """Whether a type holds numbers of this kind; of whole ones, each of them."""
    if value.dtype == expected or value.is_meta:
        return True
    if value.is_quantized or value.is_complex() or expected.is_complex:
        return False
    if expected.is_floating_point:
        return value.is_floating_point()
    return bool((value.to(expected).to(value.dtype) == value).all())


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
