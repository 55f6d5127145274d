"""Trains on what arrives, in a DistributedModelParallel whose deltas TorchRec's tracker makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from examples.movielens.model import ModelConfig, build_model, id_list_features
from torchrec_archiver.deltas import from_tracker
from torchrec_handler.ranks import init_process_group

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from examples.movielens.rows import Rows

COLLECTION = "sparse_arch.embedding_bag_collection"
TABLES_LEARNING_RATE = 0.005
LEARNING_RATE = 1e-3
STEPS = 4
"""Batches of what arrives together."""


class Trainer:
    """Goes on where an archive's weights are, and publishes what it learns."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        archive: Path,
        folder: Path,
    ) -> None:
        """Shard a model, on one rank, and give it its weights.

        Args:
            config: of the model.
            weights: what the archive was built of.
            archive: what the deltas change.
            folder: where they are published.
        """
        init_process_group()
        self._config = config
        self._random = np.random.default_rng(0)
        model = build_model(config, torch.device("cpu"), torch.device("meta"))
        apply_optimizer_in_backward(
            torch.optim.Adagrad, model.sparse_arch.parameters(), {"lr": TABLES_LEARNING_RATE}
        )
        sharder = EmbeddingBagCollectionSharder()
        plan = construct_module_sharding_plan(
            model.sparse_arch.embedding_bag_collection,
            {f"t_{feature}": table_wise(rank=0) for feature in config.sparse_features},
            local_size=1,
            world_size=1,
            device_type="cpu",
            sharder=sharder,
        )
        self._parallel = DistributedModelParallel(
            model,
            device=torch.device("cpu"),
            plan=ShardingPlan(plan={COLLECTION: plan}),
            sharders=[sharder],
        )
        with torch.no_grad():
            for name, value in self._parallel.state_dict().items():
                is_table = name.startswith(COLLECTION)
                (value.local_shards()[0].tensor if is_table else value).copy_(weights[name])
        self._optimizer = torch.optim.Adam(
            [v for name, v in self._parallel.named_parameters() if COLLECTION not in name],
            lr=LEARNING_RATE,
        )
        self._deltas = from_tracker(self._parallel, "serving", archive=archive, folder=folder)

    def train(self, rows: Rows) -> None:
        """Learn from rows once."""
        for index in np.array_split(self._random.permutation(len(rows)), STEPS):
            batch = rows.take(index)
            logits = self._parallel(
                torch.from_numpy(batch.dense),
                id_list_features(
                    self._config, torch.from_numpy(batch.lengths), torch.from_numpy(batch.values)
                ),
            )
            loss = binary_cross_entropy_with_logits(
                logits.reshape(-1), torch.from_numpy(batch.label)
            )
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def publish(self) -> list[Path]:
        """Publish what was learned since the last time."""
        return self._deltas.publish()

    def close(self) -> None:
        """End the process group."""
        self._deltas.close()
        dist.destroy_process_group()
