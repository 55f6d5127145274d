"""A real model whose rows and dense weights change while an engine answers."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.archives import good
from tests.support.line import Line, drawn
from torchrec_handler.archive.delta import TableRows, read_delta
from torchrec_handler.archive.format import DENSE, INDEX, TABLES, Index, sha256
from torchrec_handler.errors import OptionError
from torchrec_handler.load.loader import load_again, read_dense
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import read_options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest, Response
from torchrec_handler.updates.served import Served, serve_updates

BODY = json.dumps(good.request()).encode()
DICE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return good.unpack(good.build(folder), folder / "unpacked")


class Worker:
    """What TorchServe's worker does, but for TorchServe."""

    def __init__(self, archive: Path, folder: Path) -> None:
        (folder / "deltas").mkdir(exist_ok=True)
        updates = {"folder": str(folder / "deltas"), "place": str(folder), "poll_seconds": 0.005}
        options = read_options({"torchrec": {"updates": updates}})
        self.first = predictor = good.load_folder(archive)
        served = serve_updates(options, "ranking", archive, predictor, ())
        assert served is not None
        self.updates: Served[Predictor] = served
        self.engine = Engine("ranking", predictor, options, updates=served)

    def ask(self, sequence: int) -> np.ndarray[Any, Any]:
        """The scores of a generation, once that is served."""
        end = time.monotonic() + 30
        while True:
            found = ask(self.engine)
            if self.engine.sequence == sequence or time.monotonic() > end:
                assert self.engine.sequence == sequence
                return found

    def end(self) -> None:
        self.updates.following.stop()
        self.updates.following.follower.resign()


def ask(engine: Engine) -> np.ndarray[Any, Any]:
    (response,) = engine.predict([RawRequest(body=BODY, content_type="application/json")])
    assert isinstance(response, Response)
    return np.array(json.loads(response.body)["logit"])


@pytest.fixture
def worker(archive: Path, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(archive, tmp_path)
    yield made
    made.end()


def changed(archive: Path) -> tuple[list[TableRows], dict[str, torch.Tensor]]:
    """All rows, and all dense weights, drawn anew."""
    index = Index.loads((archive / INDEX).read_text())
    dense = {name: torch.randn_like(one) for name, one in read_dense(archive / DENSE).items()}
    return [drawn(entry, entry.rows, DICE) for entry in index.tables], dense


def replayed(archive: Path, folder: Path, paths: list[Path]) -> np.ndarray[Any, Any]:
    """The scores of an archive with deltas written into its tables and weights beforehand."""
    state = shutil.copy(archive / TABLES, folder / "state.bin")
    rows = np.memmap(state, np.uint8, "r+")
    kernels = {"off": "all"}
    predictor = good.load_folder(archive, kernels=kernels)
    assert predictor.index is not None
    assert predictor.tables is not None
    dense = read_dense(archive / DENSE)
    entries = {entry.key: entry for entry in predictor.index.tables}
    for path in paths:
        delta = read_delta(path)
        for table in delta.tables:
            entry = entries[table.key]
            block = rows[entry.offset : entry.offset + entry.nbytes]
            block.reshape(-1, entry.row_bytes)[table.ids] = table.rows
        dense |= delta.dense
    predictor.tables.switch(Path(state))
    options = read_options({"torchrec": {"kernels": kernels}})
    return ask(Engine("ranking", load_again(predictor, options, dense), options))


def test_each_answer_is_of_the_generation_that_it_names(
    worker: Worker, archive: Path, tmp_path: Path
) -> None:
    line = Line(tmp_path / "deltas", sha256(archive / INDEX))
    found = [worker.ask(0)]
    np.testing.assert_allclose(found[0], good.expected_scores(), atol=1e-4)
    rows, dense = changed(archive)
    others, _ = changed(archive)
    paths = []
    for tables, weights in ((rows, {}), ((), dense), (others[:2], {}), changed(archive)):
        paths.append(line.publish(tables, dense=weights))
        found.append(worker.ask(line.sequence))
        expected = replayed(archive, tmp_path, paths)
        np.testing.assert_allclose(found[-1], expected, rtol=1e-4, atol=1e-4)
        assert all(np.abs(found[-1] - before).max() > 0.01 for before in found[:-1])
    model = worker.updates.model
    assert model is not worker.first
    assert set(model.graphs) == {"forward"}
    assert [one.kernel for one in model.report.replaced][:1] == ["graph"]
    again = Worker(archive, tmp_path)
    np.testing.assert_array_equal(again.ask(4), found[-1])
    again.end()


def test_only_an_archive_on_the_cpu_can_be_updated(archive: Path, tmp_path: Path) -> None:
    def refused(folder: str, predictor: Predictor) -> str:
        options = read_options({"torchrec": {"updates": {"folder": folder}}})
        with pytest.raises(OptionError) as error:
            serve_updates(options, "ranking", archive, predictor, ())
        return str(error.value)

    predictor = good.load_folder(archive)
    assert refused(str(tmp_path / "none"), predictor) == (
        f"torchrec.updates.folder: received '{tmp_path / 'none'}', which is no folder"
    )
    assert refused(str(tmp_path), replace(predictor, index=None)) == (
        "torchrec.updates.folder: received a plain archive, which deltas cannot name; build it "
        "with torchrec-archiver"
    )
    assert refused(str(tmp_path), replace(predictor, tables=None)) == (
        "torchrec.updates.folder: received a model without tables in its archive"
    )
    assert refused(str(tmp_path), replace(predictor, device=torch.device("cuda"))) == (
        "torchrec.updates.folder: received a model on cuda: updates are for the CPU"
    )
