"""Workers that are killed while their rows change: every answer is of one generation."""

import http.client
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from tests.soak import asking
from tests.soak.row import Row
from tests.support.archives import good
from tests.support.factories.fresh import DENSE_FEATURES, FEATURES, ROWS, FreshPredictFactory
from tests.support.line import Line, drawn
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe
from torchrec_handler.archive.format import DENSE, INDEX, TABLES, Index, sha256
from torchrec_handler.load.loader import load_again, read_dense
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.updates.control import Control
from torchrec_handler.updates.live import live_folder

NAME = "fresh"
WORKERS = 2
RANKED = 200
"""Rows of the largest request."""
CHANGED = 5_000
"""Rows of a table that a delta changes, beside those that are asked for."""
DENSE_EVERY = 10
"""Each so manieth delta has dense weights, too."""
KEPT = 50
"""Deltas behind what is served that stay in the folder."""
TOLERANCE = 1e-3
LONGEST_SECONDS = 60.0

WITHOUT = """
from torchrec_handler.updates import gate, live
def redo(self):
    with self.gate.closed():
        self.control.served = self.control.applying
        self.control.served_sha256 = self.control.applying_sha256
        self.control.run = self.control.applying_run
        self.control.turns += self.control.turns % 2
if {what!r} == "redo":
    live.Live.redo = redo
else:
    gate.Gate.enter = gate.Gate.leave = lambda self: None
"""
"""What workers do at their start, so that what is promised is not kept."""


@dataclass
class Asked:
    """Bodies of requests, and the rows that they look up."""

    bodies: list[bytes] = field(default_factory=list)
    ids: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one request got."""

    body: int
    status: int | str
    sequence: int = -1
    scores: tuple[float, ...] = ()


@dataclass
class Killed:
    """Workers that were killed."""

    times: int = 0
    writers: int = 0


def asked() -> Asked:
    """A ranking request and some of a row."""
    dice = np.random.default_rng(1)
    found = Asked()
    ids = {name: dice.choice(ROWS, 2 * RANKED, replace=False) for name in FEATURES}
    found.ids = {f"t_{name}": np.unique(chosen).astype(np.int64) for name, chosen in ids.items()}
    for rows in (RANKED, 1, 1, 1, 1):
        lengths = np.full(rows * len(FEATURES), 2)
        values = [dice.choice(ids[name], 2 * rows) for name in FEATURES]
        document = {
            "float_features": dice.normal(size=(rows, DENSE_FEATURES)).tolist(),
            "id_list_features.lengths": lengths.tolist(),
            "id_list_features.values": np.concatenate(values).tolist(),
        }
        found.bodies.append(json.dumps(document).encode())
    return found


def build(
    folder: Path, name: str, factory: type[FreshPredictFactory], updates: Mapping[str, Any]
) -> Path:
    """An archive of the model."""
    config = {"minWorkers": WORKERS, "maxWorkers": WORKERS, "torchrec": {"updates": updates}}
    (folder / "model-config.yaml").write_text(yaml.safe_dump(config))
    return build_archive(
        model_name=name,
        version="1.0",
        factory=factory,
        export_path=folder,
        config_file=folder / "model-config.yaml",
    )


class Fresh:
    """A served model, whoever publishes its deltas, and its clients."""

    def __init__(
        self,
        folder: Path,
        server: TorchServe,
        factory: type[FreshPredictFactory] = FreshPredictFactory,
    ) -> None:
        """Build the model, and serve it."""
        self.deltas = folder / "deltas"
        self.deltas.mkdir()
        archive = build(folder, NAME, factory, {"folder": str(self.deltas)})
        self.archive = good.unpack(archive, folder / "unpacked")
        self.index = Index.loads((self.archive / INDEX).read_text())
        self.base = sha256(self.archive / INDEX)
        self.line = Line(self.deltas, self.base)
        self._dense = read_dense(self.archive / DENSE)
        self.asked = asked()
        self.answers: list[Answer] = []
        self.killed = Killed()
        self.published = 0
        """Bytes of deltas, as far as they are counted."""
        self._removed = 0
        self._server, self._folder = server, folder
        self._place = str(server.inference.base_url).removeprefix("http://").rstrip("/")
        self._is_over = threading.Event()
        server.register(archive, initial_workers=WORKERS).raise_for_status()
        place = Path(Options().updates.place)
        self.live = live_folder(place, NAME, self.base, self.deltas)
        self.control = Control(self.live)

    def tables(self, sequence: int) -> list[Any]:
        """The rows of a generation, which it alone decides."""
        dice = np.random.default_rng(sequence)
        entries = self.index.tables
        return [
            drawn(
                one,
                CHANGED,
                dice,
                dice.permutation(self.asked.ids[one.name])[: dice.integers(200, 400)],
            )
            for one in entries
        ]

    def dense(self, sequence: int) -> dict[str, torch.Tensor]:
        """The dense weights that come with a generation, if any do."""
        if sequence % DENSE_EVERY:
            return {}
        dice = torch.Generator().manual_seed(sequence)
        return {name: torch.randn(one.shape, generator=dice) for name, one in self._dense.items()}

    def publish(self) -> Path:
        """The next delta."""
        sequence = self.line.sequence + 1
        path = self.line.publish(self.tables(sequence), dense=self.dense(sequence))
        while self._removed < self.control.served - KEPT:
            self._removed += 1
            (self.deltas / f"{self._removed:08d}.delta").unlink(missing_ok=True)
        return path

    @contextmanager
    def load(self, *, pause: float) -> Iterator[None]:
        """Clients of both kinds, and a delta after each pause."""
        own = [
            threading.Thread(target=self._ask, args=(bodies,)) for bodies in ([0], [1, 2], [3, 4])
        ]
        own.append(threading.Thread(target=self._publish, args=(pause,)))
        for thread in own:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in own:
                thread.join()

    def kill(self, dice: random.Random) -> None:
        """Kill a worker: mostly the writer, while it writes."""
        workers = [
            int(one["pid"]) for one in self._server.workers(NAME) if one["status"] == "READY"
        ]
        control = self.control
        if len(workers) < WORKERS:  # with none at all clients would wait for long
            time.sleep(0.2)
            return
        if dice.random() < 0.7 and control.writer in workers:
            end = time.monotonic() + 5
            while control.turns % 2 == 0 and time.monotonic() < end:
                pass
            chosen = control.writer
        else:
            time.sleep(dice.random())
            chosen = dice.choice(workers)
        is_writer = chosen == control.writer  # another one is elected right behind
        with suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGKILL)
            self.killed.times += 1
            self.killed.writers += is_writer
        self._wait_until_answered(len(self.answers))

    def wait_until_published(self, sequence: int) -> None:
        """Wait until so many deltas are published."""
        while self.line.sequence < sequence:
            time.sleep(0.02)

    def wait_until_served(self) -> None:
        """Wait until what was published last is served."""
        end = time.monotonic() + LONGEST_SECONDS
        while self.control.served < self.line.sequence and time.monotonic() < end:
            time.sleep(0.05)

    def judge(self) -> tuple[int, bool]:
        """Answers that are not those of their generation, and whether rows are all as published."""
        state = self._folder / "state.bin"
        shutil.copy(self.archive / TABLES, state)
        predictor = good.load_folder(self.archive)
        assert predictor.tables is not None
        predictor.tables.switch(state)
        options, dense = Options(), self._dense
        engine: Engine | None = Engine(NAME, predictor, options)
        rows = np.memmap(state, np.uint8, "r+")
        wanted: dict[int, list[Answer]] = {}
        for answer in self.answers:
            if answer.status == 200:
                wanted.setdefault(answer.sequence, []).append(answer)
        wrong = len(wanted.pop(-1, []))
        for sequence in range(self.line.sequence + 1):
            for table in self.tables(sequence) if sequence else ():
                entry = next(one for one in self.index.tables if one.key == table.key)
                block = rows[entry.offset : entry.offset + entry.nbytes]
                block.reshape(-1, entry.row_bytes)[table.ids] = table.rows
            if sequence and (changed := self.dense(sequence)):
                dense, engine = changed, None
            given = wanted.pop(sequence, [])
            if given and engine is None:
                engine = Engine(NAME, load_again(predictor, options, dense), options)
            expected = {body: self._expected(engine, body) for body in {one.body for one in given}}
            wrong += sum(
                not np.allclose(one.scores, expected[one.body], atol=TOLERANCE) for one in given
            )
        wrong += sum(map(len, wanted.values()))
        served = np.fromfile(self.live / "live.bin", np.uint8)
        return wrong, self.control.served == self.line.sequence and np.array_equal(served, rows)

    def _expected(self, engine: Engine | None, body: int) -> list[float]:
        assert engine is not None
        request = RawRequest(body=self.asked.bodies[body], content_type="application/json")
        (response,) = engine.predict([request])
        assert not isinstance(response, Exception), response
        scores: list[float] = json.loads(response.body)["score"]
        return scores

    def _publish(self, pause: float) -> None:
        while not self._is_over.wait(pause):
            self.publish()

    def _ask(self, bodies: list[int]) -> None:
        connection = http.client.HTTPConnection(self._place, timeout=LONGEST_SECONDS)
        while not self._is_over.is_set():
            for body in bodies:
                self.answers.append(answer := self._answer(connection, body))
                if answer.status != 200:
                    self._is_over.wait(0.05)
        connection.close()

    def _answer(self, connection: http.client.HTTPConnection, body: int) -> Answer:
        try:
            content = self.asked.bodies[body]
            connection.request(
                "POST", f"/predictions/{NAME}", content, {"Content-Type": "application/json"}
            )
            received = connection.getresponse()
            text = received.read()
        except TimeoutError:
            connection.close()
            return Answer(body=body, status=asking.UNANSWERED)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer(body=body, status=type(error).__name__)
        if received.status != 200:
            return Answer(body=body, status=received.status)
        sequence = int(received.headers.get("X-TorchRec-Sequence", "-1"))
        return Answer(
            body=body, status=200, sequence=sequence, scores=tuple(json.loads(text)["score"])
        )

    def _wait_until_answered(self, before: int) -> None:
        end = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < end:
            if any(one.status == 200 for one in self.answers[before:]):
                return
            time.sleep(0.02)


def updates(folder: Path, *, kills: int = 200, answers: int = 100_000, without: str = "") -> Row:
    """Kill workers while deltas are published all the while, and hold each answer to its own."""
    environment = {}
    if without:
        customs = folder / "customs"
        customs.mkdir()
        (customs / "sitecustomize.py").write_text(WITHOUT.format(what=without))
        environment["PYTHONPATH"] = str(customs)
    with TorchServe(folder / "server", environment=environment) as server:
        fresh = Fresh(folder, server)
        dice = random.Random(1)  # noqa: S311  no secret
        with fresh.load(pause=0.01 if without == "gate" else 0.2):
            while fresh.killed.times < kills or len(fresh.answers) < answers:
                if fresh.killed.times < kills:
                    fresh.kill(dice)
                else:
                    time.sleep(0.1)
        fresh.wait_until_served()
        wrong, is_whole = fresh.judge()
        log = server.log()
    shutil.rmtree(fresh.live, ignore_errors=True)
    statuses = Counter(str(one.status) for one in fresh.answers)
    good_ones = statuses.pop("200", 0)
    sequences = len({one.sequence for one in fresh.answers})
    killed = fresh.killed
    return Row(
        what=f"rows changed all the while, workers killed {killed.times} times"
        + (f", without the {without}" if without else ""),
        promise="every answer is of one generation, that which it names; rows are those published",
        measured=(
            f"{wrong} of {good_ones} answers wrong, of {sequences} generations; {killed.writers} "
            f"were the writer, {fresh.control.redone} times rows were half written; "
            f"{dict(statuses) or 'no'} errors; "
            f"rows in the end {'as' if is_whole else 'NOT as'} published; "
            f"{log.count('Updates stand still')} standstills"
        ),
        held=not wrong and is_whole and asking.UNANSWERED not in statuses,
    )
