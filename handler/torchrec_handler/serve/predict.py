"""One call of the predict module, and its result as arrays on the host."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.load.gradients import no_gradients
from torchrec_handler.serve.batch import Inputs

HostArray = npt.NDArray[Any]
HostResult = dict[str, tuple[HostArray, ...]]
"""Output name -> its tensors: one for dict_of_tensor, value and mask for dict_with_mask_tensor."""


def predict(
    module: torch.nn.Module, qualname: str, inputs: Inputs, result_metadata: str
) -> HostResult:
    """Call a method that takes the batched input dict.

    Raises:
        PredictError: the method's result is not what `result_metadata` promises. What the method
            itself raises passes through.
    """
    with no_gradients(module):
        result = getattr(module, qualname)(inputs)
    if not isinstance(result, Mapping):
        message = (
            f"{qualname}: returned {type(result).__name__}, expected a dict ({result_metadata})"
        )
        raise PredictError(message)
    return {
        str(name): _tensors(f"{qualname}: output {name!r}", value, result_metadata)
        for name, value in result.items()
    }


def call(module: torch.nn.Module, qualname: str, arguments: Mapping[str, Any]) -> Any:
    """Call a method without `need_preproc`; tensors of its result as arrays.

    Raises:
        InvalidRequest: the method has no such parameters, or needs others.
    """
    method = getattr(module, qualname)
    try:
        inspect.signature(method).bind(**arguments)
    except TypeError as error:
        message = f"{qualname}: {error}"
        raise InvalidRequest(message) from None
    with no_gradients(module):
        result = method(**arguments)
    return _to_host(result)


def _to_host(value: Any) -> Any:
    """Tensors inside any structure as arrays; half precision as float32, which JSON can hold."""
    if isinstance(value, torch.Tensor):
        return _host(value)
    if isinstance(value, Mapping):
        return {str(key): _to_host(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_host(part) for part in value]
    return value


def _tensors(where: str, value: Any, result_metadata: str) -> tuple[HostArray, ...]:
    if result_metadata == "dict_of_tensor":
        if isinstance(value, torch.Tensor):
            return (_host(value),)
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
            return tuple(map(_host, value))
    message = f"{where} is {type(value).__name__}, expected {expected} ({result_metadata})"
    raise PredictError(message)


def _host(tensor: torch.Tensor) -> HostArray:
    """With one axis at least: a model that squeezes gives one row no axis."""
    host = tensor.detach().cpu()
    if host.dtype in (torch.float16, torch.bfloat16):
        host = host.float()
    return np.ascontiguousarray(host.numpy())
