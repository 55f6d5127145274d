"""One call of the predict module, and its result as arrays on the host."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchrec_handler.errors import InvalidRequest
from torchrec_handler.load.call import call_method, read_result, to_host
from torchrec_handler.serve.batch import Inputs
from torchrec_handler.serve.codecs.json_document import shortened

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
    return as_host_result(call_method(module, qualname, inputs), qualname, result_metadata)


def as_host_result(result: Any, qualname: str, result_metadata: str) -> HostResult:
    """What a method gave, as arrays.

    Raises:
        PredictError: it is not what `result_metadata` promises.
    """
    return read_result(result, qualname, result_metadata, _array)


def call(module: torch.nn.Module, qualname: str, arguments: Mapping[str, Any]) -> Any:
    """Call a method without `need_preproc`; tensors of its result as arrays.

    Raises:
        InvalidRequest: the method has no such parameters, or needs others.
    """
    try:
        inspect.signature(getattr(module, qualname)).bind(**arguments)
    except TypeError as error:
        raise InvalidRequest(shortened(str(error)), where=qualname) from None
    return _arrays(call_method(module, qualname, **arguments))


def _arrays(value: Any) -> Any:
    """Tensors inside any structure as arrays."""
    if isinstance(value, torch.Tensor):
        return _array(value)
    if isinstance(value, Mapping):
        return {str(key): _arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_arrays(part) for part in value]
    return value


def _array(tensor: torch.Tensor) -> HostArray:
    """With one axis at least: a model that squeezes gives one row no axis."""
    return np.ascontiguousarray(to_host(tensor).numpy())
