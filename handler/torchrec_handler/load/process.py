"""What loading changes in its process: for good in a server's worker, for a while anywhere else."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torchrec.distributed.global_settings import get_propogate_device, set_propogate_device

from torchrec_handler.options import Options
from torchrec_handler.ranks import GLOO_INTERFACE, init_process_group, is_one_of_several

NOISY = ("torchrec.distributed.planner", "MethodLogger-NullHandler")
"""Of one call of `shard_quant_model` these log some 200 lines of statistics, every argument's whole
repr, and a warning about the topology that it causes itself."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl.h."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
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
