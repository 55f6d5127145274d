"""What a method that takes the batched input has to give, by the factory's `result_metadata`."""

from collections.abc import Mapping
from typing import Any

import torch

from torchrec_handler.errors import PredictError


def read_result(
    result: Any, qualname: str, result_metadata: str
) -> dict[str, tuple[torch.Tensor, ...]]:
    """Read a method's result.

    Returns:
        Output name -> its tensors: one for dict_of_tensor, value and mask for
        dict_with_mask_tensor.

    Raises:
        PredictError: the result is not what `result_metadata` promises.
    """
    if not isinstance(result, Mapping):
        message = (
            f"{qualname}: returned {type(result).__name__}, expected a dict ({result_metadata})"
        )
        raise PredictError(message)
    return {
        str(name): _tensors(f"{qualname}: output {name!r}", value, result_metadata)
        for name, value in result.items()
    }


def _tensors(where: str, value: Any, result_metadata: str) -> tuple[torch.Tensor, ...]:
    if result_metadata == "dict_of_tensor":
        if isinstance(value, torch.Tensor):
            return (value,)
        expected = "a tensor"
    else:
        expected = "a tuple of tensors"
        pair = result_metadata == "dict_with_mask_tensor"
        if pair:
            expected = "a tuple of a value tensor and a mask tensor"
        if (
            isinstance(value, tuple | list)
            and all(isinstance(part, torch.Tensor) for part in value)
            and (not pair or len(value) == 2)
        ):
            return tuple(value)
    message = f"{where} is {type(value).__name__}, expected {expected} ({result_metadata})"
    raise PredictError(message)
