"""Deltas beside a trainer: what they lead to is what a build of the trained weights is."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.model_tracker.types import DeltaTrackerConfig, TrackingMode
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.archives import good
from tests.support.factories import dmp
from tests.support.paths import ROOT
from tests.support.replayed import assert_same, replayed
from torchrec_archiver.deltas import TrackedDeltas, from_tracker
from torchrec_handler.archive.delta import list_deltas, read_delta
from torchrec_handler.errors import BuildError, DeltaError
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.ranks import init_process_group

# DistributedModelParallel's own use of DistributedDataParallel.
pytestmark = pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")


def build(store: Path, weights: dict[str, torch.Tensor]) -> Path:
    store.mkdir(exist_ok=True)
    return good.build(
        store, factory=dmp.DmpPredictFactory, weights=weights, archive_format="no-archive"
    )


@dataclass
class Trainer:
    parallel: DistributedModelParallel
    archive: Path
    folder: Path
    optimizer: torch.optim.Optimizer

    def step(self, ids: list[int], *, quiet: bool = False) -> None:
        """With `quiet` the last feature has no ids."""
        features = dmp.FEATURES
        lengths = torch.ones(len(features), len(ids), dtype=torch.int32)
        if quiet:
            lengths[-1] = 0
        values = torch.tensor(ids).repeat(int(lengths[:, 0].sum()))
        jagged = KeyedJaggedTensor(keys=features, lengths=lengths.reshape(-1), values=values)
        self.optimizer.zero_grad()
        self.parallel(torch.ones(len(ids), 4), jagged).square().mean().backward()
        self.optimizer.step()

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            name: (value.local_shards()[0].tensor if hasattr(value, "local_shards") else value)
            .detach()
            .clone()
            for name, value in self.parallel.state_dict().items()
        }

    def tracked(self) -> TrackedDeltas:
        return from_tracker(self.parallel, "serving", archive=self.archive, folder=self.folder)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    with unchanged_process():
        init_process_group()
        torch.manual_seed(0)
        model = dmp.build("meta")
        apply_optimizer_in_backward(torch.optim.SGD, model.sparse_arch.parameters(), {"lr": 1.0})
        sharder = EmbeddingBagCollectionSharder()
        plan = construct_module_sharding_plan(
            model.sparse_arch.embedding_bag_collection,
            {f"t{number}": table_wise(rank=0) for number in range(4)},
            local_size=1,
            world_size=1,
            device_type="cpu",
            sharder=sharder,
        )
        parallel = DistributedModelParallel(
            model,
            device=torch.device("cpu"),
            plan=ShardingPlan(plan={"sparse_arch.embedding_bag_collection": plan}),
            sharders=[sharder],
        )
        dense = [value for name, value in parallel.named_parameters() if "sparse_arch" not in name]
        found = Trainer(parallel, Path(), tmp_path / "updates", torch.optim.SGD(dense, lr=0.02))
        found.folder.mkdir()
        found.archive = build(tmp_path / "archives", found.weights())
        yield found
    assert not dist.is_initialized()


def test_deltas_lead_to_what_training_has(trainer: Trainer, tmp_path: Path) -> None:
    deltas = trainer.tracked()
    assert deltas.publish() == []
    trainer.step([3, 5, 5])
    trainer.step([7])
    (first,) = deltas.publish(created=12.0)
    delta = read_delta(first)
    assert (delta.head.sequence, delta.head.created) == (1, 12.0)
    assert {tuple(table.ids) for table in delta.tables} == {(3, 5, 7)}
    assert deltas.publish() == []
    trainer.step([5], quiet=True)
    (second,) = deltas.publish()
    assert sorted(table.key.table for table in read_delta(second).tables) == ["t0", "t1", "t2"]
    assert list_deltas(trainer.folder) == [first, second]
    fresh = build(tmp_path / "fresh", trainer.weights())
    assert_same(replayed(trainer.archive, [first, second]), replayed(fresh, []))


def test_a_trainer_goes_on_where_the_folder_is(trainer: Trainer) -> None:
    trainer.tracked()
    trainer.step([3])
    trainer.tracked().publish()
    again = trainer.tracked()
    trainer.step([3, 9])
    (path,) = again.publish()
    head = read_delta(path).head
    assert head.sequence == 2
    assert head.run == read_delta(list_deltas(trainer.folder)[0]).head.run
    assert all(3 in table.ids for table in read_delta(path).tables)


def test_ids_are_kept_until_they_are_published(trainer: Trainer) -> None:
    deltas = trainer.tracked()
    trainer.step([3])
    (trainer.folder / "00000001.delta").write_text("in the way")
    with pytest.raises(DeltaError, match="is there already"):
        deltas.publish()
    (trainer.folder / "00000001.delta").unlink()
    trainer.step([4])
    (path,) = deltas.publish()
    assert {tuple(table.ids) for table in read_delta(path).tables} == {(3, 4)}


def test_what_cannot_be_tracked_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    other = good.build(tmp_path, archive_format="no-archive")
    with pytest.raises(BuildError, match="none of the predict module's"):
        from_tracker(trainer.parallel, "serving", archive=other, folder=trainer.folder)
    with pytest.raises(BuildError) as raised:
        from_tracker(trainer.parallel, "other", archive=trainer.archive, folder=trainer.folder)
    assert str(raised.value) == (
        "tracker: has the consumers serving, expected other among them; name it in the "
        "DeltaTrackerConfig"
    )


def test_another_mode_is_refused(trainer: Trainer) -> None:
    trainer.parallel.init_torchrec_delta_tracker(
        DeltaTrackerConfig(tracking_mode=TrackingMode.MOMENTUM_LAST, consumers=["serving"])
    )
    with pytest.raises(BuildError) as raised:
        trainer.tracked()
    assert str(raised.value) == "tracker: tracks momentum_last, expected id_only"


def test_two_ranks_publish_tables_sharded_in_every_way(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("torchrun"))]
    command += ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command += ["-m", "tests.support.tracked_two_ranks", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    paths = list_deltas(tmp_path / "updates")
    assert [path.name for path in paths] == [f"0000000{number}.delta" for number in (1, 2, 3)]
    fresh = build(tmp_path / "fresh", torch.load(tmp_path / "weights.pt"))
    assert_same(replayed(tmp_path / "ranking", paths), replayed(fresh, []))
