"""One call of the predict module, and its result as arrays on the host."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchrec_handler.errors import InvalidRequest
from torchrec_handler.load.gradients import no_gradients
from torchrec_handler.load.result import read_result
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
    with no_gradients(module):
        result = getattr(module, qualname)(inputs)
    return {
        name: tuple(map(_host, tensors))
        for name, tensors in read_result(result, qualname, result_metadata).items()
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
        raise InvalidRequest(shortened(str(error)), where=qualname) from None
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


def _host(tensor: torch.Tensor) -> HostArray:
    """With one axis at least: a model that squeezes gives one row no axis."""
    host = tensor.detach().cpu()
    if host.dtype in (torch.float16, torch.bfloat16):
        host = host.float()
    return np.ascontiguousarray(host.numpy())
