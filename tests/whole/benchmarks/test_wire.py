"""What `plan` says of the network is what ranks say to one another."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scale
from benchmarks.wire import tcp_bytes
from tests.support.command_line import run
from tests.support.factories.kinds_pooled import WidthsFactory
from tests.support.kinds import CPU, build
from tests.support.on_ranks import on_ranks
from torchrec_handler.load.call import call_method
from torchrec_handler.load.loader import load, load_follower
from torchrec_handler.options import Options
from torchrec_handler.ranks import Ranks

TABLE_ROWS = (20_000, 12_000, 9_000, 800, 90, 10, 3)
"""Large and small ones, as models of clicks have them."""
ROWS = 1000
TIMES = 5
OF_A_MESSAGE = 1_020
"""Bytes: its head, what went wrong if anything did, and what gloo says around these."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """With tables of one width, and of several."""
    folder = tmp_path_factory.mktemp("wire")
    return scale.build(folder, "one", TABLE_ROWS), build(WidthsFactory, folder, "several")


def random_batch(features: Sequence[int], ids: int, seed: int) -> dict[str, torch.Tensor]:
    """Ids below `features`, in lists of so many."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randint(0, below, (ids * ROWS,), generator=generator) for below in features]
    return {
        "float_features": torch.rand(ROWS, 13, generator=generator),
        "id_list_features.lengths": torch.full((len(features) * ROWS,), ids).int(),
        "id_list_features.values": torch.cat(values).int(),
    }


def travelled(
    ranks: Ranks, cases: Sequence[tuple[Path, Mapping[str, Any], int]]
) -> list[float] | None:
    """Bytes of a batch of random ids, by case: the archive, how it is sharded, ids of a list."""
    logging.disable(logging.WARNING)
    found = []
    for archive, sharding, ids in cases:
        options = Options.model_validate({"sharding": {**sharding, "timeout_seconds": 30.0}})
        if not ranks.is_leader:
            load_follower(archive, options, CPU, ranks).run()
            continue
        predictor = load(archive, options, CPU, ranks=ranks)
        assert predictor.leader
        features = [below or 0 for below in predictor.signature.inputs[-1].ids_below]
        batches = [random_batch(features, ids, seed) for seed in range(TIMES)]
        before = tcp_bytes()
        for batch in batches:
            call_method(predictor.module, "forward", batch)
        found.append((tcp_bytes() - before) / TIMES)
        predictor.leader.stop()
    return found if ranks.is_leader else None


@pytest.mark.parametrize("size", [2, 4])
def test_what_travels_is_what_a_plan_says(
    size: int, archives: Sequence[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """But for a kilobyte of messages' own that each other rank is asked with."""
    one, several = archives
    by_table, by_row = ("table_wise", "float32"), ("row_wise", "float16")
    asked = [(one, by_table, 1), (one, by_row, 1), (one, by_table, 3), (several, by_row, 3)]
    cases = [
        (archive, {"type": kind, "exchange_dtype": dtype}, ids)
        for archive, (kind, dtype), ids in asked
    ]
    found, *_ = on_ranks(size, travelled, cases)
    capsys.readouterr()
    planned = []
    for archive, (kind, dtype), ids in asked:
        given = ("--type", kind, "--exchange-dtype", dtype, "--ids-per-feature", str(ids))
        assert run("plan", archive, "--nodes", str(size), *given, "--json") == 0
        said = json.loads(capsys.readouterr().out)["network_bytes"]
        planned.append(said + OF_A_MESSAGE * (size - 1))
    assert found == pytest.approx(planned, rel=0.02)
