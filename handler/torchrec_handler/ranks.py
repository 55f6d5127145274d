"""Second step of loading: the process group that a PredictFactory may rely on, and its ranks."""

import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from torchrec_handler.errors import LoadError

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Gloo's own variable, read whenever a group is made."""

SIOCGIFADDR = 0x8915
"""Of Linux: the address of an interface."""
DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Processes that serve one model together: one leads, the others do as it says."""

    own: int
    leader: int
    size: int

    @property
    def is_leader(self) -> bool:
        """Whether this process leads."""
        return self.own == self.leader

    @property
    def followers(self) -> Sequence[int]:
        """All ranks but the leader."""
        return [rank for rank in range(self.size) if rank != self.leader]

    def agree(self, what: str, *said: object) -> None:
        """See that all ranks say the same; to be called by all of them.

        Args:
            what: for the message.
            said: whatever they have to agree on, as its `str`.

        Raises:
            LoadError: a rank says something else, or is gone.
        """
        digest = hashlib.sha256("\0".join(map(str, said)).encode()).digest()
        found = _gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        others = [str(rank) for rank, one in enumerate(found) if not torch.equal(one, found[0])]
        if others:
            message = (
                f"ranks: rank {', '.join(others)} of {self.size} and rank 0 differ in {what}; give "
                "all of them the same archive and the same versions of libraries"
            )
            raise LoadError(message)


def is_one_of_several() -> bool:
    """Whether torchrun, or who does as it does, started this process as one of its ranks."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def init_process_group() -> None:
    """Start the default process group, once a process.

    Under torchrun (TorchServe's `parallelType`), rank, world size and rendezvous come from the
    environment, and gloo talks over the interface that leads to `MASTER_ADDR`. Otherwise it has
    one rank and needs no rendezvous, so no port is chosen or shared; gloo's own listener, which it
    cannot do without, is kept on the loopback interface.
    `PredictFactory.create_predict_module` assumes that this was called
    (torchrec.inference.modules).

    Raises:
        LoadError: the ranks did not find each other.
    """
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if is_one_of_several():
        interface = _interface_to(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ.setdefault(GLOO_INTERFACE, interface)
        try:
            dist.init_process_group(backend)
        except (RuntimeError, ValueError) as error:
            message = f"process group: torchrun's environment does not lead to one: {error}"
            raise LoadError(message) from error
        return
    os.environ.setdefault(GLOO_INTERFACE, "lo")
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def meet(*, leads: bool) -> Ranks | None:
    """Find out who of the process group leads; to be called by all of its ranks.

    Args:
        leads: whether this process does: it has the server, or is the only one that answers.

    Returns:
        The ranks; None where there is one alone.

    Raises:
        LoadError: none of them leads, or several do, or one is gone.
    """
    size = dist.get_world_size()
    if size == 1:
        return None
    flags = _gather(torch.tensor([int(leads)]))
    leaders = [rank for rank, flag in enumerate(flags) if int(flag)]
    if len(leaders) != 1:
        message = (
            f"ranks: {len(leaders)} of {size} have a server, expected one; on further machines run "
            "torchrec-archiver join"
        )
        raise LoadError(message)
    return Ranks(own=dist.get_rank(), leader=leaders[0], size=size)


def _gather(own: torch.Tensor) -> list[torch.Tensor]:
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    try:
        dist.all_gather(found, own)
    except RuntimeError as error:
        message = f"ranks: another rank is gone: {error}"
        raise LoadError(message) from error
    return found


def _interface_to(host: str) -> str | None:
    """The network interface that has the address which a host is reached from."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 1))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode())
                try:
                    answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:  # no such host, or one that IPv6 leads to
        pass
    return None
