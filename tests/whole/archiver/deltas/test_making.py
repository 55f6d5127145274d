"""Deltas of checkpoints: what they lead to is byte for byte what a build of the checkpoint is."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.archives import good
from tests.support.command_line import run
from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_base import trained as trained_kind
from tests.support.factories.kinds_meta import MetaPrunedFactory, MetaQuantizedFactory
from tests.support.factories.kinds_pooled import ManagedFactory
from tests.support.factories.ranking import MetaRankingPredictFactory, seeded
from tests.support.keys import make_keys
from tests.support.replayed import Weights, assert_same, replayed
from torchrec_archiver.deltas import comparing
from torchrec_archiver.deltas.base import Base, open_base
from torchrec_archiver.deltas.history import rollback, squash
from torchrec_archiver.deltas.making import Made, make_delta
from torchrec_archiver.model import WeightsOf
from torchrec_handler.archive.delta import Outputs, list_deltas, read_delta, signature_of
from torchrec_handler.archive.format import SAMPLES
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.errors import BuildError, DeltaError

GENERATIONS = 5
REMAPPED = "_mch_remapped_ids_mapping"
USER = "sparse.embedding_bags.t_user.weight"


def build(store: Path, weights: Weights, **arguments: Any) -> Path:
    store.mkdir(exist_ok=True)
    given = {"factory": MetaRankingPredictFactory, "configs": {"name.txt": "ranking"}, **arguments}
    return good.build(store, archive_format="no-archive", weights=weights, force=True, **given)


def trained(weights: Weights, seed: int) -> Weights:
    """A step of training: some rows and weights move, one row by less than int8 can tell."""
    chance = torch.Generator().manual_seed(seed)
    changed = {name: value.clone() for name, value in weights.items()}
    for name, value in changed.items():
        if "embedding_bags" in name:
            ids = torch.randperm(value.shape[0], generator=chance)[:4]
            value[ids] += torch.randn(4, value.shape[1], generator=chance)
    changed[USER][0, 3] += 1e-6
    changed["over.0.weight"] += seed
    return changed


@dataclass(frozen=True)
class Trained:
    base: Path
    folder: Path
    """Of the deltas."""
    checkpoints: list[Weights]
    made: list[Made]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Not to be changed."""
    store = tmp_path_factory.mktemp("training")
    checkpoints = [dict(seeded().state_dict())]
    for seed in range(1, GENERATIONS + 1):
        checkpoints.append(trained(checkpoints[-1], seed))
    base, folder = build(store / "archives", checkpoints[0]), store / "updates"
    folder.mkdir()
    with open_base(base) as opened:
        made = [make(opened, folder, weights) for weights in checkpoints[1:]]
    return Trained(base, folder, checkpoints, made)


@pytest.fixture
def copied(training: Trained, tmp_path: Path) -> Trained:
    """With a folder of deltas to be changed."""
    folder = tmp_path / "updates"
    folder.mkdir()
    for path in list_deltas(training.folder):
        (folder / path.name).write_bytes(path.read_bytes())
    return Trained(training.base, folder, training.checkpoints, training.made)


def make(base: Base, folder: Path, weights: Weights, **arguments: Any) -> Made:
    return make_delta(base, WeightsOf(source=weights), folder, **arguments)


def test_deltas_lead_to_what_a_build_is(training: Trained, tmp_path: Path) -> None:
    fresh = build(tmp_path, training.checkpoints[-1])
    assert_same(replayed(training.base, list_deltas(training.folder)), replayed(fresh, []))
    assert replayed(training.base, [])[0] != replayed(fresh, [])[0]


def scores(outputs: Outputs | None) -> list[torch.Tensor]:
    """What the samples give, as a delta says it."""
    assert outputs is not None
    return [one["logit"][0] for one in outputs]


def test_deltas_say_what_a_build_gives(training: Trained, tmp_path: Path) -> None:
    """To the archive's samples, at each generation; of one that is taken back what it gave then."""
    first, last = (
        [
            sample.outputs["logit"][0]
            for sample in read_samples(build(tmp_path / name, checkpoint) / SAMPLES)
        ]
        for name, checkpoint in zip(
            ("first", "last"), training.checkpoints[::GENERATIONS], strict=True
        )
    )
    with open_base(training.base) as base:
        paths = make(base, tmp_path, training.checkpoints[-1], max_rows=30).paths
        back, forward = rollback(base, tmp_path, 0), rollback(base, tmp_path, len(paths))
        squashed = squash(base, tmp_path)
        (silent,) = make(
            base, tmp_path / "first", training.checkpoints[1], with_outputs=False
        ).paths
    pieces = [scores(read_delta(path).outputs) for path in paths]
    newest = scores(read_delta(list_deltas(training.folder)[-1]).outputs)
    torch.testing.assert_close(newest, last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pieces[-1], newest)
    assert len(pieces) > 2
    assert all(not torch.equal(one[-1], other[-1]) for one, other in pairwise(pieces))
    for path, expected in ((back, first), (forward, pieces[-1]), (squashed, pieces[-1])):
        assert all(map(torch.equal, scores(read_delta(path).outputs), expected))
    assert read_delta(silent).outputs is None


def test_rows_that_are_the_same_once_encoded_are_left_out(training: Trained) -> None:
    first = training.made[0]
    (path,) = first.paths
    delta = read_delta(path)
    before, after = training.checkpoints[:2]
    changed = {key.table: len(ids) for key, ids in ((t.key, t.ids) for t in delta.tables)}
    assert changed == dict.fromkeys(("t_user", "t_movie", "t_genres", "t_tags", "t_clicks"), 4)
    assert {key.table: rows for key, rows in first.rows.items()} == changed
    assert not torch.equal(before[USER][0], after[USER][0])
    users = next(table for table in delta.tables if table.key.table == "t_user")
    assert 0 not in users.ids
    assert list(delta.dense) == first.dense == ["over.0.weight"]


def test_tables_of_many_blocks_are_compared_in_their_order(
    training: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "BLOCK_BYTES", 256)
    with open_base(training.base) as base:
        (path,) = make(base, tmp_path, training.checkpoints[1]).paths
        ours, whole = read_delta(path), read_delta(training.made[0].paths[0])
        for one, other in zip(ours.tables, whole.tables, strict=True):
            assert one.key == other.key
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.rows, other.rows)
        invalid = {name: value.clone() for name, value in training.checkpoints[1].items()}
        invalid[USER][[7, 30]] = torch.nan
        with pytest.raises(BuildError) as error:
            make(base, tmp_path, invalid)
    assert str(error.value) == ("table 't_user', int8: row 7 holds nan, expected finite numbers")


def test_a_rollback_is_what_an_earlier_generation_was(copied: Trained) -> None:
    paths = list_deltas(copied.folder)
    with open_base(copied.base) as base:
        for to in (3, 0):
            back = rollback(base, copied.folder, to)
            delta = read_delta(back)
            assert (delta.head.kind, delta.head.sequence) == (
                "rollback",
                len(list_deltas(copied.folder)),
            )
            then = replayed(copied.base, paths[:to])
            assert_same(replayed(copied.base, list_deltas(copied.folder)), then)
        forward = make(base, copied.folder, copied.checkpoints[2])
    assert forward.paths[0].name == "00000008.delta"
    assert_same(replayed(copied.base, list_deltas(copied.folder)), replayed(copied.base, paths[:2]))


def test_a_squashed_delta_is_those_that_it_stands_for(copied: Trained) -> None:
    paths = list_deltas(copied.folder)
    whole = replayed(copied.base, paths)
    with open_base(copied.base) as base:
        middle = squash(base, copied.folder, first=2, last=4)
        assert middle.name == "00000002-00000004.delta"
        assert_same(replayed(copied.base, [paths[0], middle, paths[4]]), whole)
        assert_same(replayed(copied.base, [*paths[:2], middle, paths[4]]), whole)
        for path in paths[1:4]:
            path.unlink()
        all_of_it = squash(base, copied.folder)
        assert_same(replayed(copied.base, [all_of_it]), whole)
        for path in list_deltas(copied.folder):
            if path != all_of_it:
                path.unlink()
        with pytest.raises(BuildError) as raised:
            rollback(base, copied.folder, 2)
        assert str(raised.value) == (
            f"folder: {copied.folder} does not lead to generation 2: generation 0 is followed by a "
            "squashed delta that leads further"
        )
        again = make(base, copied.folder, copied.checkpoints[1])
        assert again.paths[0].name == "00000006.delta"
        back = rollback(base, copied.folder, 5)
    assert_same(replayed(copied.base, [all_of_it, *again.paths, back]), whole)


def test_many_rows_become_several_generations(training: Trained, tmp_path: Path) -> None:
    with open_base(training.base) as base:
        made = make(base, tmp_path, training.checkpoints[-1], max_rows=10)
    deltas = [read_delta(path) for path in made.paths]
    counts = [sum(len(table.ids) for table in delta.tables) for delta in deltas]
    assert counts[:-1] == [10] * (len(counts) - 1)
    assert sum(counts) == sum(made.rows.values()) > 50
    assert [bool(delta.dense) for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert_same(
        replayed(training.base, made.paths),
        replayed(training.base, list_deltas(training.folder)),
    )


def test_what_cannot_be_served_is_published_by_no_part(training: Trained, tmp_path: Path) -> None:
    weights = {name: value.clone() for name, value in training.checkpoints[-1].items()}
    weights["weighted.embedding_bags.t_clicks.weight"][7] = torch.nan
    with open_base(training.base) as base:
        with pytest.raises(BuildError) as raised:
            make(base, tmp_path, weights, max_rows=10)
        assert str(raised.value) == (
            "table 't_clicks', int8: row 7 holds nan, expected finite numbers"
        )
        weights["weighted.embedding_bags.t_clicks.weight"][7] = 0
        weights["over.0.bias"][0] = torch.inf
        with pytest.raises(BuildError, match=r"over\.0\.bias holds inf"):
            make(base, tmp_path, weights)
        assert not list(tmp_path.iterdir())
        assert not make(base, tmp_path, training.checkpoints[0]).paths


@pytest.mark.parametrize("dtype", ["float32", "float16", "int4", "int2"])
def test_every_data_type_leads_to_what_a_build_is(
    dtype: str, training: Trained, tmp_path: Path
) -> None:
    config, folder = tmp_path / "config.yaml", tmp_path / "updates"
    config.write_text(f"torchrec: {{tables: {{dtype: {dtype}}}}}\n", encoding="utf-8")
    folder.mkdir()
    first, last = training.checkpoints[0], training.checkpoints[-1]
    archive = build(tmp_path / "first", first, config_file=config)
    fresh = build(tmp_path / "last", last, config_file=config)
    with open_base(archive) as base:
        made = make(base, folder, last)
    assert_same(replayed(archive, made.paths), replayed(fresh, []))


@pytest.mark.parametrize("factory", [MetaQuantizedFactory, MetaPrunedFactory])
def test_what_factories_do_to_tables_is_done_to_rows(
    factory: type[KindFactory], tmp_path: Path
) -> None:
    """Quantized by the factory; and pruned, where rows that are not kept change nothing."""
    weights = dict(trained_kind(factory).predict_module.state_dict())
    folder = tmp_path / "updates"
    folder.mkdir()
    changed = {name: value.clone() for name, value in weights.items()}
    user = next(value for name, value in changed.items() if name.endswith("t_user.weight"))
    user[3] += 1
    user[-1] += 1
    archive, fresh = (
        build(tmp_path / name, given, factory=factory)
        for name, given in (("first", weights), ("last", changed))
    )
    with open_base(archive) as base:
        made = make(base, folder, changed)
        (entry,) = (entry for key, entry in base.entries.items() if key.table == "t_user")
    kept = [3] if entry.rows < len(user) else [3, len(user) - 1]
    (table,) = read_delta(made.paths[0]).tables
    assert table.ids.tolist() == kept
    assert_same(replayed(archive, made.paths), replayed(fresh, []))


def test_a_folder_that_does_not_lead_there_is_refused(copied: Trained, tmp_path: Path) -> None:
    paths = list_deltas(copied.folder)
    weights = copied.checkpoints[0]
    with open_base(copied.base) as base:
        with pytest.raises(DeltaError) as fork:
            make(base, copied.folder, weights, after=2)
        assert str(fork.value) == "00000003.delta: is there already; each generation has one delta"
        paths[2].unlink()
        with pytest.raises(BuildError) as gap:
            make(base, copied.folder, weights)
        assert str(gap.value) == (
            f"folder: {copied.folder} does not lead to generation 5: generation 3 is missing"
        )
    with open_base(build(tmp_path / "archives", copied.checkpoints[1])) as base:
        with pytest.raises(BuildError) as raised:
            make(base, copied.folder, weights)
        assert str(raised.value) == (
            f"{paths[0]}: is a delta of another archive; each has a folder of its own"
        )


def test_managed_collision_comes_whole(tmp_path: Path) -> None:
    """Its buffers with its rows, in one generation, however few rows that may have."""
    store, folder = tmp_path / "archives", tmp_path / "updates"
    store.mkdir()
    folder.mkdir()
    archive = good.build(store, factory=ManagedFactory, archive_format="no-archive")
    weights = {
        name: value.clone()
        for name, value in ManagedFactory()
        .create_predict_module()
        .predict_module.state_dict()
        .items()
    }
    collision = "collection._managed_collision_collection._managed_collision_modules"
    remaps = {
        table: [f"{collision}.{table}.{name}" for name in ("_mch_sorted_raw_ids", REMAPPED)]
        for table in ("t_user", "t_movie")
    }
    weights["collection._embedding_module.embedding_bags.t_user.weight"][:3] += 1
    weights[remaps["t_movie"][1]] = weights[remaps["t_movie"][1]].flip(0)
    weights[f"{collision}.t_user._mch_counts"] += 1
    with open_base(archive) as base:
        made = make(base, folder, weights, max_rows=1)
    (path,) = made.paths
    delta = read_delta(path)
    assert {table.key.table: table.ids.tolist() for table in delta.tables} == {
        "t_user": [0, 1, 2],
        "t_movie": [],
    }
    assert sorted(delta.dense) == sorted([*remaps["t_user"], *remaps["t_movie"]])


# The commands.


def test_the_commands_make_deltas_and_show_them(
    training: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = make_keys(tmp_path, "release")
    folder, other = tmp_path / "updates", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    given = ("--base", training.base, "--folder", folder, "--sign", private)
    for number in (1, 2):
        weights = tmp_path / f"{number}.pt"
        torch.save(training.checkpoints[number], weights)
        assert run("delta", "--weights", weights, *given) == 0
    printed = capsys.readouterr().out
    assert printed == (
        "t_user: 4 of 50 rows (8.00%)\nt_movie: 4 of 40 rows (10.00%)\n"
        "t_genres: 4 of 10 rows (40.00%)\nt_tags: 4 of 30 rows (13.33%)\n"
        "t_clicks: 4 of 20 rows (20.00%)\ndense weights: 1\n{}\n" * 2
    ).format(folder / "00000001.delta", folder / "00000002.delta")
    assert run("delta", "--weights", weights, *given) == 0
    assert capsys.readouterr().out == ("dense weights: 0\nnothing differs, so there is no delta\n")
    assert run("rollback", "--to", "1", *given) == 0
    assert run("squash", "--to", "2", "--remove", *given) == 0
    assert capsys.readouterr().out == (
        f"{folder / '00000003.delta'}\nremoved: 2 deltas that it stands for\n"
        f"{folder / '00000001-00000002.delta'}\n"
    )
    squashed, back = list_deltas(folder)
    assert run("inspect", back, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["sequence"], shown["signed"]) == ("rollback", 3, True)
    assert [table["rows"] for table in shown["tables"]] == [4] * 5
    assert run("inspect", squashed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"00000001-00000002.delta: update, generation 1 to 2, {squashed.stat().st_size:,} bytes"
    )
    assert lines[4].startswith("table t_user of _module.sparse: ")
    assert lines[-2:] == ["weight over.0.weight: [16, 43]", "outputs of 4 samples"]
    applied = ("--base", training.base, "--folder", other)
    assert run("apply", squashed, *applied) == 0
    assert run("apply", squashed, *applied) == 0
    assert capsys.readouterr().out == f"{other / squashed.name}\n" * 2
    assert signature_of(other / squashed.name).exists()
    signature_of(back).unlink()
    # The archive is not signed either.
    assert run("apply", back, *applied, "--trusted-keys", public) == 1
    assert "model.sig" in capsys.readouterr().err
    back.write_bytes(back.read_bytes()[:-1])
    assert run("apply", back, *applied) == 1
    assert "00000003.delta: its sha256 is" in capsys.readouterr().err
    assert [path.name for path in other.iterdir() if path.suffix == ".delta"] == [squashed.name]
    assert run("inspect", back, "--html", tmp_path / "page.html") == 1


def test_a_delta_of_another_archive_is_not_applied(
    copied: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build(tmp_path / "archives", copied.checkpoints[1])
    (first, *_) = list_deltas(copied.folder)
    folder = tmp_path / "none"
    assert run("apply", first, "--base", other, "--folder", folder) == 1
    assert "00000001.delta: was made for the archive " in capsys.readouterr().err
    assert run("apply", first, "--base", copied.base, "--folder", folder) == 1
    assert capsys.readouterr().err == (f"ERROR: folder: {folder} is not a folder; make it first\n")
