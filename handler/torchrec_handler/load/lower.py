"""Seventh step of loading: fit the dense part and this process to the machine."""

import torch

from torchrec_handler.errors import OptionError
from torchrec_handler.options import Dense


def lower(module: torch.nn.Module, options: Dense, threads: int, device: torch.device) -> None:
    """Set threads, evaluation mode and the device of a `PredictModule` that was given none.

    A `PredictModule` without a device takes the current CUDA device at its first call, which
    raises on a machine without one (torchrec.inference.modules).
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
    if options.dtype != "float32":
        message = f"torchrec.dense.dtype: {options.dtype!r} is not served yet, expected 'float32'"
        raise OptionError(message)
    module.eval()
    for found in module.modules():
        if hasattr(found, "predict_module") and getattr(found, "_device", device) is None:
            found._device = device  # noqa: SLF001  PredictModule has no other way to set it
