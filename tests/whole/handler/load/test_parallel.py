"""A factory that gives TorchRec's DistributedModelParallel: all ranks call it together."""

import logging
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from tests.support.factories.dmp import DmpPredictFactory, DmpPredictModule, build, sample
from tests.support.on_ranks import CPU, on_ranks
from torchrec_handler.load.call import call_method
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.states import Made
from torchrec_handler.load.steps import (
    lay_out,
    load_weights,
    make_follower,
    make_leader,
    make_ready,
)
from torchrec_handler.options import Options
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.find import find_collections

COLLECTION = "sparse_arch.embedding_bag_collection"


class ParallelFactory(DmpPredictFactory):
    """On two ranks each has its tables, and parts of others."""

    def create_predict_module(self, world_size: int = 1) -> torch.nn.Module:
        torch.manual_seed(0)
        model = build("cpu").eval()
        if world_size == 1:
            return DmpPredictModule(model, "cpu")
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        sharder = EmbeddingBagCollectionSharder()
        plan = construct_module_sharding_plan(
            model.sparse_arch.embedding_bag_collection,
            {
                "t0": table_wise(rank=1),
                "t1": row_wise(),
                "t2": table_wise(rank=0),
                "t3": row_wise(),
            },
            local_size=2,
            world_size=2,
            device_type="cpu",
            sharder=sharder,
        )
        parallel = DistributedModelParallel(
            model,
            env=ShardingEnv(2, dist.get_rank(), dist.group.WORLD),
            device=CPU,
            plan=ShardingPlan(plan={COLLECTION: plan}),
            sharders=[sharder],
        )
        for name, value in parallel.state_dict().items():
            for part in value.local_shards() if hasattr(value, "local_shards") else ():
                start, rows = part.metadata.shard_offsets[0], part.metadata.shard_sizes[0]
                part.tensor.copy_(weights[name][start : start + rows])
        return DmpPredictModule(parallel.eval(), "cpu")


def answers(ranks: Ranks) -> Any:
    """A good batch, one that the model refuses, and the good one again."""
    logging.disable(logging.WARNING)
    options = Options.model_validate({"sharding": {"world_size": 2, "timeout_seconds": 30.0}})
    output = run_factory(ParallelFactory(), CPU, world_size=2)
    nothing: Any = None
    made = Made(
        package=nothing,
        options=options,
        device=CPU,
        output=output,
        collections=find_collections(output.module),
    )
    weighted = load_weights(made, None)
    laid = lay_out(weighted, {}, lambda _: None, ranks)
    if not ranks.is_leader:
        lower(laid.module, options, CPU)
        make_follower(laid, options, ranks).run()
        return "ended"
    leader = make_leader(laid, options, ranks, output.qualnames)
    module = make_ready(weighted, laid, None).module
    dense, sparse = sample()
    inputs = {
        "float_features": dense,
        "id_list_features.lengths": sparse.lengths(),
        "id_list_features.values": sparse.values(),
    }
    found: list[Any] = [call_method(module, "forward", inputs)["default"].tolist()]
    try:
        call_method(module, "forward", {"float_features": dense})
    except KeyError as error:
        found.append(str(error))
    found.append(call_method(module, "forward", inputs)["default"].tolist())
    leader.stop()
    single = ParallelFactory().create_predict_module()
    return [*found, call_method(single, "forward", inputs)["default"].tolist()]


def test_all_ranks_call_it_together_and_refuse_together() -> None:
    (first, refused, again, single), follower = on_ranks(2, answers)
    assert first == again == pytest.approx(single, abs=1e-6)
    assert refused == "'id_list_features.lengths'"
    assert follower == "ended"
