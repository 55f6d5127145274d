"""Samples replayed on what deltas lead to: what is off is refused before it is served."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.archives import good
from tests.support.line import Line, drawn
from torchrec_handler.archive.delta import ROLLBACK, Outputs, TableRows
from torchrec_handler.archive.format import DENSE, INDEX, SAMPLES, TABLES, Index, sha256
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.errors import SelfTestError
from torchrec_handler.load.call import call_recorded
from torchrec_handler.load.loader import load_again, read_dense
from torchrec_handler.load.self_test import largest_change
from torchrec_handler.options import read_options
from torchrec_handler.updates.served import serve_updates

Weights = dict[str, torch.Tensor]
FIRST = "self-test: forward, sample of 1 rows"
OUTPUT = "output 'default'"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return good.unpack(good.build(folder), folder / "unpacked")


class Worker:
    """A worker's thread that is elected, whose steps are taken one by one."""

    def __init__(self, archive: Path, folder: Path, **updates: Any) -> None:
        self.archive, self.deltas = archive, folder / "deltas"
        self.deltas.mkdir(exist_ok=True)
        self.index = Index.loads((archive / INDEX).read_text())
        given = {"folder": str(self.deltas), "place": str(folder), **updates}
        options = read_options({"torchrec": {"updates": given}})
        served = serve_updates(options, "ranking", archive, good.load_folder(archive), ())
        assert served is not None
        self.served = served
        served.following.stop()
        self.follower = served.following.follower
        self.follower.step()
        self.line = Line(self.deltas, sha256(archive / INDEX))

    @property
    def sequence(self) -> int:
        return self.served._control.served

    def rows(self, seed: int) -> list[TableRows]:
        """All of each table."""
        dice = np.random.default_rng(seed)
        return [drawn(entry, entry.rows, dice) for entry in self.index.tables]

    def end(self) -> None:
        """Let its locks go, as the end of its process does."""
        if self.follower.is_elected:
            self.follower.resign()
            os.close(self.follower._seat._file)


@pytest.fixture
def start(archive: Path, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    workers = []

    def started(**updates: Any) -> Worker:
        workers.append(Worker(archive, tmp_path, **updates))
        return workers[-1]

    yield started
    for one in workers:
        one.end()


def outputs(archive: Path, folder: Path, tables: list[TableRows], dense: Weights) -> Outputs:
    """What a worker with its kernels gives, rows written beforehand."""
    predictor = good.load_folder(archive)
    assert predictor.tables is not None
    state = np.fromfile(archive / TABLES, np.uint8)
    for table in tables:
        entry = predictor.tables.entries[table.key]
        block = state[entry.offset : entry.offset + entry.nbytes]
        block.reshape(entry.rows, entry.row_bytes)[table.ids] = table.rows
    (folder / "state.bin").write_bytes(state.tobytes())
    predictor.tables.switch(folder / "state.bin")
    options = read_options({})
    model = load_again(predictor, options, read_dense(archive / DENSE) | dense)
    return tuple(
        call_recorded(
            model.module, sample.qualname, sample.inputs, model.result_metadata, model.device
        )
        for sample in read_samples(archive / SAMPLES)
    )


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and record.name.startswith("torchrec_handler")
    ]


def weights(archive: Path, scale: float) -> Weights:
    return {name: one * scale for name, one in read_dense(archive / DENSE).items()}


def test_what_a_delta_says_is_compared_before_it_is_served(
    start: Callable[..., Worker], archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start()
    rows, dense = worker.rows(1), weights(archive, 1.5)
    own = read_samples(archive / SAMPLES)
    told = [outputs(archive, tmp_path, *given) for given in ((rows, {}), (rows, dense))]
    worker.line.publish(rows, outputs=told[0])
    worker.follower.step()
    assert (worker.sequence, worker.follower.counts.refused) == (1, {})
    kept, served = worker.line.previous, worker.served._live.path.read_bytes()
    # Neither what the archive gave, nor what the rows before it give.
    for wrong in (tuple(one.outputs for one in own), told[0]):
        worker.line.sequence, worker.line.previous = 1, kept
        path = worker.line.publish(worker.rows(2), dense=dense, outputs=wrong)
        with caplog.at_level(logging.ERROR):
            worker.follower.step()
        said = errors(caplog)[-1]
        where = f"Delta refused (samples): {path.name}: {FIRST}, {OUTPUT}"
        assert said.startswith(f"{where}[0]: received ")
        assert said.endswith(
            "apart; this worker's model does not answer as it did when the delta was made"
        )
        assert (worker.sequence, path.exists()) == (1, False)
        assert path.with_name(f"{path.name}.refused").exists()
    assert worker.follower.counts.refused == {"samples": 2}
    assert worker.served._live.path.read_bytes() == served
    assert worker.served._control.preparing == 0
    worker.line.sequence, worker.line.previous = 1, kept
    worker.line.publish(dense=dense, outputs=told[1])
    worker.follower.step()
    assert worker.sequence == 2
    worker.end()
    assert start().served.sequence == 2


def test_a_worker_that_starts_replays_what_is_served(
    start: Callable[..., Worker], archive: Path, tmp_path: Path
) -> None:
    worker = start()
    rows = worker.rows(1)
    worker.line.publish(rows, outputs=outputs(archive, tmp_path, rows, {}))
    worker.follower.step()
    worker.end()
    assert start().served.sequence == 1
    with worker.served._live.path.open("r+b") as file:
        file.write(archive.joinpath(TABLES).read_bytes())
    with pytest.raises(SelfTestError, match="does not answer as it did when the delta was made"):
        start()
    for path in worker.deltas.iterdir():
        path.unlink()
    assert start().served.sequence == 1


def test_what_says_nothing_has_to_give_finite_numbers(
    start: Callable[..., Worker], archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start()
    path = worker.line.publish(dense=weights(archive, 1e20))
    with caplog.at_level(logging.ERROR):
        worker.follower.step()
    assert errors(caplog) == [
        (
            f"Delta refused (samples): {path.name}: {FIRST}, {OUTPUT}: holds numbers that are not "
            "finite, as the archive's are"
        )
    ]
    assert worker.sequence == 0


def test_outputs_of_other_samples_are_refused(
    start: Callable[..., Worker], archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start()
    own = tuple(one.outputs for one in read_samples(archive / SAMPLES))
    first = {name: parts[0] for name, parts in own[0].items()}
    wrong: dict[str, Outputs] = {
        "outputs: received those of 3 samples, expected 4": own[:3],
        f"{FIRST}: received the outputs default, logit, expected logit": (
            {"logit": own[0]["logit"]},
            *own[1:],
        ),
        f"{FIRST}: received the outputs default, logit, expected default (2), logit": (
            {**own[0], "default": (first["default"],) * 2},
            *own[1:],
        ),
        f"{FIRST}, {OUTPUT}: received shape (1,), expected (2,)": (
            {name: (one.repeat(2),) for name, one in first.items()},
            *own[1:],
        ),
    }
    with caplog.at_level(logging.ERROR):
        for given in wrong.values():
            worker.line.sequence, worker.line.previous = 0, worker.line.base
            worker.line.publish(outputs=given)
            worker.follower.step()
    assert errors(caplog) == [f"Delta refused (samples): 00000001.delta: {said}" for said in wrong]
    assert worker.sequence == 0


def test_outputs_may_change_as_much_as_is_allowed(
    start: Callable[..., Worker], archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start()
    worker.end()
    rows = worker.rows(1)
    given = outputs(archive, tmp_path, rows, {})
    change = max(
        largest_change(sample.outputs, found)
        for sample, found in zip(read_samples(archive / SAMPLES), given, strict=True)
    )
    worker = start(max_output_change=change + 0.1)
    worker.follower.step()
    worker.line.publish(rows)
    worker.follower.step()
    assert worker.sequence == 1
    kept = worker.line.previous
    path = worker.line.publish(dense=weights(archive, 3))
    with caplog.at_level(logging.ERROR):
        worker.follower.step()
    (said,) = errors(caplog)
    assert said.startswith(f"Delta refused (samples): {path.name}: forward, sample of ")
    assert said.endswith(
        f", expected at most {change + 0.1:g} (torchrec.updates.max_output_change)"
    )
    worker.line.sequence, worker.line.previous = 1, kept
    worker.line.publish(dense=weights(archive, 3), kind=ROLLBACK)
    worker.follower.step()
    assert worker.sequence == 2
