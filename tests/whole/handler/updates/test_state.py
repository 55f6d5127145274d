"""What a live copy holds after many deltas is what a build of the last checkpoint holds."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.archives import good
from tests.support.factories.kinds_pooled import ManagedFactory
from tests.support.factories.ranking import MetaRankingPredictFactory, seeded
from tests.support.replayed import replayed
from torchrec_archiver.deltas.base import open_base
from torchrec_archiver.deltas.history import rollback
from torchrec_archiver.deltas.making import make_delta
from torchrec_archiver.model import WeightsOf
from torchrec_handler.archive.delta import read_delta
from torchrec_handler.archive.format import DENSE, INDEX, SAMPLES, TABLES, Index, sha256
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.load.loader import load_again, read_dense
from torchrec_handler.load.self_test import TOLERANCES
from torchrec_handler.options import Options
from torchrec_handler.updates.follow import Follower, Source
from torchrec_handler.updates.live import Live
from torchrec_handler.updates.samples import Recorded, SampleTest
from torchrec_handler.updates.weights import Weights

GENERATIONS = int(os.environ.get("GENERATIONS", "15"))
BACK = GENERATIONS // 2
Checkpoint = dict[str, torch.Tensor]


def build(store: Path, weights: Checkpoint, **arguments: Any) -> Path:
    store.mkdir(exist_ok=True)
    given = {"factory": MetaRankingPredictFactory, "configs": {"name.txt": "ranking"}, **arguments}
    return good.build(store, weights=weights, archive_format="no-archive", **given)


def trained(weights: Checkpoint, seed: int) -> Checkpoint:
    """Some rows of each table move, and every third time a dense weight."""
    chance = torch.Generator().manual_seed(seed)
    changed = {name: value.clone() for name, value in weights.items()}
    for name, value in changed.items():
        if "embedding_bags" in name:
            ids = torch.randperm(value.shape[0], generator=chance)[:4]
            value[ids] += torch.randn(4, value.shape[1], generator=chance)
    if seed % 3 == 0:
        changed["over.0.weight"] += seed
    return changed


def state(follower: Follower) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Rows and dense weights that are served."""
    live = follower.live
    path = live.folder / f"dense-{live.control.served_dense}.safetensors"
    return live.path.read_bytes(), load_file(path)


def assert_is(follower: Follower, archive: Path) -> None:
    rows, dense = state(follower)
    assert rows == (archive / TABLES).read_bytes()
    own = read_dense(archive / DENSE)
    assert dense.keys() == own.keys()
    assert all(torch.equal(dense[name], own[name]) for name in own)


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    """Of an archive and a folder that are empty of deltas; it replays samples."""
    archive, deltas, live = (
        build(tmp_path / "base", dict(seeded().state_dict())),
        *(tmp_path / name for name in ("deltas", "live")),
    )
    for one in (deltas, live):
        one.mkdir()
    index = Index.loads((archive / INDEX).read_text())
    source = Source(
        archive=archive,
        index=index,
        base=sha256(archive / INDEX),
        dense=read_dense(archive / DENSE),
        deltas=deltas,
        keys=(),
    )
    made = Live(live, {entry.key: entry for entry in index.tables}, deltas, read_delta)
    weights = Weights(live, source.dense, good.load_folder(archive), lambda _: weights.ready.model)
    recorded = Recorded(
        predictor=weights.ready.model,
        options=Options(),
        samples=read_samples(archive / SAMPLES),
        tolerance=TOLERANCES["float32"],
    )
    return Follower(made, source, weights, SampleTest(recorded, made, weights))


def test_rows_are_those_of_a_build(follower: Follower, tmp_path: Path) -> None:
    checkpoints = [dict(seeded().state_dict())]
    source = follower._source
    with open_base(source.archive) as base:
        for seed in range(1, GENERATIONS + 1):
            checkpoints.append(trained(checkpoints[-1], seed))
            make_delta(base, WeightsOf(source=checkpoints[-1]), source.deltas)
            follower.step()
        assert follower._control.served == GENERATIONS
        assert_is(follower, build(tmp_path / "last", checkpoints[-1]))
        rollback(base, source.deltas, BACK)
    follower.step()
    assert follower._control.served == GENERATIONS + 1
    assert follower.counts.refused == {}
    assert_is(follower, build(tmp_path / "back", checkpoints[BACK]))


def test_managed_collision_answers_as_a_build_of_the_checkpoint(tmp_path: Path) -> None:
    """Its buffers and rows together: the ids that had other rows before find theirs."""
    store, deltas = tmp_path / "archives", tmp_path / "deltas"
    for one in (store, deltas):
        one.mkdir()
    module = ManagedFactory().create_predict_module().predict_module
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    for name, value in weights.items():
        if name.endswith("._mch_remapped_ids_mapping"):
            weights[name] = value.flip(0)
        elif name.endswith(".weight") and "embedding_bags" in name:
            weights[name] = value + 1
    archive = good.build(store, factory=ManagedFactory, archive_format="no-archive")
    with open_base(archive) as base:
        (path,) = make_delta(base, WeightsOf(source=weights), deltas).paths
    rows, dense = replayed(archive, [path])
    (tmp_path / "state.bin").write_bytes(rows)
    predictor = good.load_folder(archive)
    batch = {
        "id_list_features.lengths": torch.full((10,), 2, dtype=torch.int32),
        "id_list_features.values": torch.arange(20, dtype=torch.int64) * 7,
    }
    with torch.inference_mode():
        before = predictor.module(batch)["default"]
        assert predictor.tables is not None
        predictor.tables.switch(tmp_path / "state.bin")
        found = load_again(predictor, Options(), dense).module(batch)["default"]
        fresh = build(tmp_path / "fresh", weights, factory=ManagedFactory, configs={})
        expected = good.load_folder(fresh).module(batch)["default"]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(before, expected)
