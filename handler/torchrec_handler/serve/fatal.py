"""Which errors leave a process that can answer nothing more."""

import re

import torch
import torch.distributed as dist

from torchrec_handler.errors import Unusable

GLOO = re.compile(r"\[\S*gloo/transport/")
"""How gloo's messages begin, whose errors have no type: a rank has gone, or does not answer."""


def is_fatal(error: Exception) -> bool:
    """Whether an error is one of the process, not of a request.

    A sticky error of CUDA is raised by every call after it, and ranks that have lost one another
    wait for each other for ever.
    """
    if isinstance(error, torch.AcceleratorError):
        return not _device_answers()
    if isinstance(error, dist.DistError | Unusable):
        return True
    is_one_of_many = dist.is_initialized() and dist.get_world_size() > 1
    return is_one_of_many and isinstance(error, RuntimeError) and bool(GLOO.match(str(error)))


def _device_answers() -> bool:
    try:
        torch.ones(1, device=torch.accelerator.current_accelerator()).sum().item()
    except RuntimeError:
        return False
    return True
