"""Trains `train_two_ranks`' sharded model on two ranks and publishes deltas as it goes.

Writes into the folder named first: the archive of its first weights, deltas in `updates`, and
`weights.pt`, the weights that it ended with.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from tests.support.archives import good
from tests.support.factories.dmp import DmpPredictFactory, jagged
from tests.support.train_two_ranks import COLLECTION, shard
from torchrec_archiver.deltas import from_tracker


def whole(parallel: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """The state on rank 0, each table in one piece."""
    state: dict[str, torch.Tensor] = {}
    value: Any
    for name, value in parallel.state_dict().items():
        if isinstance(value, ShardedTensor):
            out = torch.empty(tuple(value.size())) if dist.get_rank() == 0 else None
            value.gather(0, out)
            state[name] = out if out is not None else torch.empty(0)
        else:
            state[name] = value.detach().clone()
    return state


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    parallel = shard(output_dtensor=False)
    weights = whole(parallel)
    if dist.get_rank() == 0:
        (folder / "updates").mkdir()
        good.build(folder, factory=DmpPredictFactory, weights=weights, archive_format="no-archive")
    dist.barrier()
    deltas = from_tracker(
        parallel, "serving", archive=folder / "ranking", folder=folder / "updates"
    )
    dense = [value for name, value in parallel.named_parameters() if COLLECTION not in name]
    optimizer = torch.optim.SGD(dense, lr=0.02)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(9):
        values = torch.randint(0, 100, (4 * 8,), generator=generator)
        scores = parallel(torch.randn(8, 4, generator=generator), jagged(values))
        loss = (scores - values[:8].remainder(7).unsqueeze(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 3 == 2:
            deltas.publish()
    deltas.publish()
    deltas.close()
    trained = whole(parallel)
    if dist.get_rank() == 0:
        torch.save(trained, folder / "weights.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
