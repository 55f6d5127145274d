"""Second step of loading: the process group that a PredictFactory may rely on."""

import os

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from torchrec_handler.errors import LoadError

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Gloo's own variable, read whenever a group is made."""


def init_process_group() -> None:
    """Start the default process group, once a process.

    Under torchrun (TorchServe's `parallelType`), rank, world size and rendezvous come from the
    environment. Otherwise it has one rank and needs no rendezvous, so no port is chosen or shared;
    gloo's own listener, which it cannot do without, is kept on the loopback interface.
    `PredictFactory.create_predict_module` assumes that this was called
    (torchrec.inference.modules).

    Raises:
        LoadError: the ranks did not find each other.
    """
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        try:
            dist.init_process_group(backend)
        except (RuntimeError, ValueError) as error:
            message = f"process group: torchrun's environment does not lead to one: {error}"
            raise LoadError(message) from error
        return
    os.environ.setdefault(GLOO_INTERFACE, "lo")
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
