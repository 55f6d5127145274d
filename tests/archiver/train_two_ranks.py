"""Trains `tests.factories.dmp` on two ranks, as torchrun starts it, and saves it sharded.

Table-wise, row-wise and column-wise tables, with the optimizer fused into the backward pass. Writes
the checkpoint to the folder named first, and beside it the scores of `sample()`.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from tests.factories.dmp import build, jagged, sample

COLLECTION = "sparse_arch.embedding_bag_collection"


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = build("meta")
    apply_optimizer_in_backward(torch.optim.SGD, model.sparse_arch.parameters(), {"lr": 1.0})
    sharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        model.sparse_arch.embedding_bag_collection,
        {
            "t0": table_wise(rank=0),
            "t1": row_wise(),
            "t2": column_wise(ranks=[0, 1]),
            "t3": table_wise(rank=1),
        },
        local_size=2,
        world_size=2,
        device_type="cpu",
        sharder=sharder,
    )
    parallel = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=ShardingPlan(plan={COLLECTION: plan}),
        sharders=[sharder],
    )
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
    save(parallel.state_dict(), checkpoint_id=folder)
    parallel.eval()
    with torch.no_grad():
        scores = torch.sigmoid(parallel(*sample())).reshape(-1)
    if dist.get_rank() == 0:
        torch.save(scores, folder / "scores.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
