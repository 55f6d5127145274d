"""Runs a function on several ranks of one process group, forked from a process with TorchRec."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
from torchrec_handler.ranks import Ranks, meet

CPU = torch.device("cpu")
SECONDS = 120


def on_ranks(size: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What each rank's job gives, called with its ranks, of which rank 0 leads; None if it died.

    Args:
        size: how many ranks.
        job: of a module; raising on one rank, it ends all of them.
        arguments: behind the ranks; like the results they are pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.kinds"])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(
            target=_run,
            args=({**group, "RANK": str(rank)}, pipe, job, arguments),
            daemon=True,
        )
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, pipe in pipes:
        pipe.close()
    try:
        return [_received(received) for received, _ in pipes]
    finally:
        for process in processes:
            process.join(SECONDS)
            process.kill()


def _received(pipe: Any) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None


def _run(variables: Mapping[str, str], pipe: Any, job: Callable[..., Any], arguments: Any) -> None:
    os.environ |= variables
    become_worker(Options(), CPU)
    ranks = meet(leads=variables["RANK"] == "0")
    assert isinstance(ranks, Ranks)
    pipe.send_bytes(pickle.dumps(job(ranks, *arguments)))
    os._exit(0)
