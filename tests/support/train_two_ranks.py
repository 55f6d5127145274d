"""Trains `tests.support.factories.dmp` on two ranks, as torchrun starts it, and saves it sharded.

Table-wise, row-wise, column-wise and table-row-wise tables, with the optimizer fused into the
backward pass. Writes into the folder named first:

- `checkpoint`, by torch.distributed.checkpoint;
- `sharded`, by torch.save of every rank's state, ShardedTensors, and its optimizer's;
- `dtensor`, the same of a model whose state is DTensors, the dense weights by rows;
- `scores.pt`, the scores of `sample()`.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from tests.support.factories.dmp import build, jagged, sample

COLLECTION = "sparse_arch.embedding_bag_collection"


def shard(*, output_dtensor: bool) -> DistributedModelParallel:
    torch.manual_seed(0)
    model = build("meta")
    apply_optimizer_in_backward(torch.optim.Adagrad, model.sparse_arch.parameters(), {"lr": 1.0})
    sharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        model.sparse_arch.embedding_bag_collection,
        {
            "t0": table_wise(rank=1),
            "t1": row_wise(),
            "t2": column_wise(ranks=[0, 1]),
            "t3": table_row_wise(host_index=0),
        },
        local_size=2,
        world_size=2,
        device_type="cpu",
        sharder=sharder,
    )
    return DistributedModelParallel(
        model,
        env=ShardingEnv(2, dist.get_rank(), dist.group.WORLD, output_dtensor=output_dtensor),
        device=torch.device("cpu"),
        plan=ShardingPlan(plan={COLLECTION: plan}),
        sharders=[sharder],
    )


def save_ranks(parallel: DistributedModelParallel, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    optimizer = parallel.fused_optimizer.state_dict()
    weights = parallel.state_dict()
    if any(isinstance(value, DTensor) for value in weights.values()):  # as fully_shard leaves them
        mesh = init_device_mesh("cpu", (2,))
        for name, value in weights.items():
            if not isinstance(value, DTensor):
                weights[name] = distribute_tensor(value, mesh, [Shard(0)])
    state = {"model": weights, "optimizer": optimizer, "epoch": 3}
    torch.save(state, folder / f"rank{dist.get_rank()}.pt")


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    parallel = shard(output_dtensor=False)
    dense = [value for name, value in parallel.named_parameters() if COLLECTION not in name]
    optimizer = torch.optim.SGD(dense, lr=0.02)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(100):
        values = torch.randint(0, 100, (4 * 32,), generator=generator)
        scores = parallel(torch.randn(32, 4, generator=generator), jagged(values))
        loss = (scores - values[:32].remainder(7).unsqueeze(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save(parallel.state_dict(), checkpoint_id=folder / "checkpoint")
    save_ranks(parallel, folder / "sharded")
    other = shard(output_dtensor=True)
    state = other.state_dict()
    load(state, checkpoint_id=folder / "checkpoint")
    save_ranks(other, folder / "dtensor")
    parallel.eval()
    with torch.no_grad():
        scores = torch.sigmoid(parallel(*sample())).reshape(-1)
    if dist.get_rank() == 0:
        torch.save(scores, folder / "scores.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
