"""A worker that cannot answer, or not rightly, ends, and another one takes its place."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.archives import good
from tests.support.factories.soaked import HANGS, SoakedPredictFactory
from torchrec_archiver.server import TorchServe
from torchrec_handler.archive.format import TABLES
from torchrec_handler.tables import mapped

NAME = "ending"


@pytest.fixture
def tables(server: TorchServe, tmp_path: Path) -> Iterator[Path]:
    """The tables of a model that is served from its folder."""
    config = tmp_path / "model-config.yaml"
    config.write_text("responseTimeout: 1\n")
    archive = good.build(
        tmp_path,
        model_name=NAME,
        factory=SoakedPredictFactory,
        config_file=config,
        archive_format="no-archive",
    )
    stored = Path(shutil.copytree(archive, server.model_store / NAME))
    answer = server.register(stored)
    assert answer.is_success, answer.text
    yield stored / TABLES
    server.unregister(NAME)


def assert_right(answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.json()["logit"] == pytest.approx(good.expected_scores().tolist(), abs=1e-3)


def test_a_worker_that_hangs_or_has_other_tables_ends(server: TorchServe, tables: Path) -> None:
    hanging = good.request()
    hanging["float_features"][0][0] = HANGS
    (first,) = server.workers(NAME)
    answer = server.predict(NAME, hanging)
    assert (answer.status_code, answer.json()["message"]) == (500, "Worker died.")
    assert_right(server.predict(NAME, good.request()))
    (second,) = server.workers(NAME)
    assert second["pid"] != first["pid"]

    other = tables.with_suffix(".new")
    other.write_bytes(bytes(tables.stat().st_size))
    kept = tables.rename(tables.with_suffix(".kept"))
    other.rename(tables)
    assert_right(server.predict(NAME, good.request()))

    with kept.open("r+b") as file:
        file.write(b"\x01")
    time.sleep(2 * mapped.SECONDS)
    answer = server.predict(NAME, good.request())
    assert (answer.status_code, json.loads(answer.text)["message"]) == (500, "Worker died.")
    assert server.logs_soon(f"/{TABLES}: written to ")
    assert server.logs_soon("This worker ends, and TorchServe starts another")
