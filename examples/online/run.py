"""Serves one model twice, with deltas and without, while it is trained on what both were asked.

Every second some ratings arrive. Both models are asked for them first; then the trainer learns from
them and publishes a delta, which one of the two follows. Features are the same for both.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from examples.movielens.auc import auc
from examples.movielens.files import DatasetMissingError
from examples.movielens.train import TrainOptions, fit, model_config
from examples.online.picture import draw
from examples.online.stream import load
from examples.online.trainer import Trainer
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe
from torchrec_handler.options import Updates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from examples.movielens.rows import Rows

ONLINE, FROZEN = "with deltas", "without"
NAMES: Mapping[str, str] = {ONLINE: "online", FROZEN: "frozen"}
SEQUENCE = "X-TorchRec-Sequence"
WINDOW = 10
"""Seconds whose ratings an AUC of the picture is of."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How much arrives, and how fast."""

    output: Path
    seconds: int = 100
    rows_per_second: int = 500
    place: str = Updates().place
    """For the live copy of the tables."""


@dataclass(kw_only=True)
class Figures:
    """What was seen."""

    labels: list[np.ndarray] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: {ONLINE: [], FROZEN: []})
    sequences: list[tuple[int, int]] = field(default_factory=list)
    """Which generation answered, and which was published last, second by second."""
    published_ms: list[float] = field(default_factory=list)
    """What each delta took, from the trainer's memory to the folder."""
    delta_bytes: list[int] = field(default_factory=list)

    def auc(self, name: str, start: int, end: int) -> float:
        """AUC of some seconds."""
        labels = np.concatenate(self.labels[start:end]) > 0
        return auc(labels, np.concatenate(self.scores[name][start:end]))

    def over_time(self) -> dict[str, list[float]]:
        """AUC of the last `WINDOW` seconds, for each second from there on."""
        ends = range(min(WINDOW, len(self.labels)), len(self.labels) + 1)
        return {
            name: [self.auc(name, max(0, end - WINDOW), end) for end in ends]
            for name in self.scores
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `result.json` holds."""

    auc: Mapping[str, float]
    """Of all that arrived."""
    deltas: int
    behind: int
    """How many times an answer was of an older generation than the one published before."""
    publish_ms: float
    """Median of what a delta takes, from the trainer's memory to the folder."""
    delta_kb: float
    """Mean size of a delta."""


def run(options: RunOptions, server: TorchServe | None = None) -> Result:
    """Build, serve, train; write `auc.svg` and `result.json`.

    Args:
        options: how much of it.
        server: to serve on; one of its own, if not given.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    stream = load()
    config = model_config(stream.known)
    weights = fit(stream.known.train(), config, TrainOptions(progress=False)).state_dict()
    store, folder = options.output / "model_store", options.output / "updates"
    for path in (store, folder):
        path.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    archives = {}
    for name in NAMES.values():
        settings = options.output / f"{name}.yaml"
        text = "minWorkers: 1\nmaxWorkers: 1\n"
        if name == NAMES[ONLINE]:
            text += f"torchrec:\n  updates:\n    folder: {folder.resolve()}\n"
            text += f"    place: {options.place}\n"
        settings.write_text(text, encoding="utf-8")
        archives[name] = build_archive(
            model_name=name,
            version="1.0",
            factory="examples.movielens.factory:MovieLensPredictFactory",
            configs={"config.pkl": config},
            weights=weights,
            config_file=settings,
            export_path=store,
            archive_format="no-archive",
            force=True,
        )
    figures = Figures()
    trainer = Trainer(config, weights, archives[NAMES[ONLINE]], folder)
    try:
        serving: AbstractContextManager[TorchServe] = (
            nullcontext(server) if server else TorchServe(options.output, model_store=store)
        )
        with serving as running:
            for archive in archives.values():
                running.register(archive).raise_for_status()
            began = time.monotonic()
            chunks = stream.chunks(options.rows_per_second)
            for second, rows in zip(range(options.seconds), chunks, strict=False):
                time.sleep(max(0.0, began + second - time.monotonic()))
                _second(running, trainer, rows, figures)
    finally:
        trainer.close()
    return _write(options, figures)


def _second(server: TorchServe, trainer: Trainer, rows: Rows, figures: Figures) -> None:
    published = len(figures.published_ms)
    for said, name in NAMES.items():
        answer = server.predict(name, rows.request())
        answer.raise_for_status()
        figures.scores[said].append(np.array(answer.json()["default"]))
        if said == ONLINE:
            figures.sequences.append((int(answer.headers[SEQUENCE]), published))
    figures.labels.append(rows.label)
    trainer.train(rows)
    began = time.perf_counter()
    for path in trainer.publish():
        figures.published_ms.append(1e3 * (time.perf_counter() - began))
        figures.delta_bytes.append(path.stat().st_size)


def _write(options: RunOptions, figures: Figures) -> Result:
    seconds = len(figures.labels)
    result = Result(
        auc={name: round(figures.auc(name, 0, seconds), 4) for name in NAMES},
        deltas=len(figures.published_ms),
        behind=sum(answered < published for answered, published in figures.sequences),
        publish_ms=round(float(np.median(figures.published_ms)), 1),
        delta_kb=round(float(np.mean(figures.delta_bytes)) / 1e3, 1),
    )
    lines = figures.over_time()
    (options.output / "auc.svg").write_text(
        draw(
            "MovieLens-100k, trained while it is served",
            f"{options.rows_per_second} ratings a second, asked before they are learned; "
            f"AUC of the last {WINDOW} s; a delta a second",
            [float(second) for second in range(seconds - len(lines[ONLINE]) + 1, seconds + 1)],
            lines,
        ),
        encoding="utf-8",
    )
    text = json.dumps(asdict(result), indent=1) + "\n"
    (options.output / "result.json").write_text(text, encoding="utf-8")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.online.run", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/online"))
    parser.add_argument("--seconds", type=int, default=RunOptions.seconds)
    parser.add_argument("--rows-per-second", type=int, default=RunOptions.rows_per_second)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the server has the other core
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        result = run(
            RunOptions(
                output=given.output,
                seconds=given.seconds,
                rows_per_second=given.rows_per_second,
            )
        )
    except DatasetMissingError as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    said = ", ".join(f"{value:.4f} {name}" for name, value in result.auc.items())
    sys.stdout.write(
        f"AUC {said}; {result.deltas} deltas of {result.delta_kb:,.1f} kB, {result.publish_ms} ms "
        f"each, {result.behind} not served within their second; written to {given.output}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
