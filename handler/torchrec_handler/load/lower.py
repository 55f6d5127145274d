"""Seventh step of loading: fit the dense part and this process to the machine."""

from typing import Any

import torch
from torchrec.inference.modules import quantize_dense
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)

from torchrec_handler.errors import OptionError
from torchrec_handler.options import Dense


def lower(module: torch.nn.Module, options: Dense, threads: int, device: torch.device) -> None:
    """Set threads, evaluation mode, the dense part's data type, and a `PredictModule`'s device.

    A `PredictModule` without a device takes the current CUDA device at its first call, which
    raises on a machine without one (torchrec.inference.modules).
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
    module.eval()
    for found in module.modules():
        if hasattr(found, "predict_module") and getattr(found, "_device", device) is None:
            setattr(found, "_device", device)  # noqa: B010  PredictModule has no other way to set it
    if options.dtype == "float32":
        return
    if not hasattr(module, "predict_module"):
        message = (
            f"torchrec.dense.dtype: {options.dtype!r} needs a PredictModule, the factory gives "
            f"{type(module).__name__}; expected 'float32'"
        )
        raise OptionError(message)
    if options.dtype == "float16":
        quantize_dense(module, torch.half)
    else:
        _dense_to_bfloat16(module.predict_module)


def _dense_to_bfloat16(inner: Any) -> None:
    """What TorchRec's `quantize_dense` does for float16, for bfloat16, which it refuses."""
    for child in inner.children():
        if not isinstance(child, EmbeddingBagCollectionInterface | EmbeddingCollectionInterface):
            child.bfloat16()
            child.register_forward_pre_hook(_inputs_to_bfloat16)


def _inputs_to_bfloat16(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.bfloat16()
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float64)
        else value
        for value in inputs
    )
