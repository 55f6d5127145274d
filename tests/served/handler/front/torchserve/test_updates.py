"""Rows and dense weights that change under load, while the worker that writes them is killed."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.fresh import NAME, Fresh
from torchrec_archiver.server import TorchServe


@pytest.fixture
def fresh(server: TorchServe, tmp_path: Path) -> Iterator[Fresh]:
    made = Fresh(tmp_path, server)
    yield made
    server.unregister(NAME)
    shutil.rmtree(made.live)


def test_every_answer_is_of_the_generation_that_it_names(fresh: Fresh, server: TorchServe) -> None:
    with fresh.load(pause=0.1):
        fresh.wait_until_published(25)
        fresh.kill(random.Random(1))  # noqa: S311  no secret
        fresh.wait_until_published(fresh.line.sequence + 10)
    fresh.wait_until_served()
    assert fresh.judge() == (0, True)
    assert len({answer.sequence for answer in fresh.answers}) > 10
    assert fresh.killed.times == 1
    described = server.management.get(f"/models/{NAME}?customized=true").json()
    told = described[0]["customizedMetadata"]["served"]["updates"]
    assert (told["sequence"], told["lag_sequences"]) == (fresh.line.sequence, 0)
