"""What loading changes in its process: for good in a server's worker, for a while anywhere else."""

import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torchrec.distributed.global_settings import get_propogate_device, set_propogate_device

from torchrec_handler.errors import OptionError
from torchrec_handler.options import Options
from torchrec_handler.ranks import GLOO_INTERFACE, init_process_group, is_one_of_several

NOISY = ("torchrec.distributed.planner", "MethodLogger-NullHandler")
"""Of one call of `shard_quant_model` these log some 200 lines of statistics, every argument's whole
repr, and a warning about the topology that it causes itself."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl.h."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
YOUNG_OBJECTS = 20_000
"""Not yet looked through for cycles; 64 requests of a row are some 1,500 objects at a time."""

KEPT_BYTES = 2**28
KEPT_BLOCK_BYTES = 2**25
"""The most that glibc allows."""


def become_worker(options: Options, device: torch.device) -> None:
    """Fit the whole process to serving one model; what `load` then changes stays.

    Raises:
        LoadError: the process group cannot be started.
    """
    if is_one_of_several():
        _end_with_parent()
    init_process_group()
    set_propogate_device(True)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
        _keep_memory()


def worker_device(wanted: str, gpu_id: int | None) -> torch.device:
    """The device that a worker loads for.

    Args:
        wanted: `torchrec.device`.
        gpu_id: what its server gave it; None for no GPU.

    Raises:
        OptionError: it is `cuda`, and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and (gpu_id is None or not torch.cuda.is_available())):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        message = "torchrec.device: received 'cuda', but this machine has no CUDA device"
        raise OptionError(message)
    device = torch.device("cuda", gpu_id or 0)
    torch.cuda.set_device(device)
    return device


def keep_what_is_loaded() -> None:
    """Let collections of garbage pass over all that is there now, and be few.

    A full one looks at every object of torch's modules, some 0.2 s in which no request is answered.
    """
    gc.collect()
    gc.freeze()
    # Nor is a batch that is being answered looked at: it is gone before so many are left over.
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _end_with_parent() -> None:
    """Let the kernel end this process with torchrun, which TorchServe ends by SIGKILL.

    Else it would wait for other ranks for as long as they may take.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undo what the steps of loading, and the factory's code, change in a process that goes on.

    A process group that was not there is gone afterwards: a model that uses one when it is called
    needs one that the caller started.
    """
    threads, propagates, path = torch.get_num_threads(), get_propogate_device(), list(sys.path)
    is_grouped, interface = dist.is_initialized(), os.environ.get(GLOO_INTERFACE)
    levels = {name: logging.getLogger(name).level for name in NOISY}
    try:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if dist.is_initialized() and not is_grouped:
            dist.destroy_process_group()
        if interface is None:
            os.environ.pop(GLOO_INTERFACE, None)
        else:
            os.environ[GLOO_INTERFACE] = interface
        sys.path[:] = path
        set_propogate_device(propagates)
        torch.set_num_threads(threads)


def _keep_memory() -> None:
    """Let malloc keep what a forward call frees for the next one.

    By default glibc gives it back to the system, and reading it in anew, page by page, takes up to
    a third of a call with 1,000 rows. Memory of larger blocks, and what lies free at the top beyond
    `KEPT_BYTES`, is given back as before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
