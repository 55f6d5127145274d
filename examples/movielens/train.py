"""Trains the DLRM and writes all that the archiver and the demo need."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from examples.movielens.auc import auc
from examples.movielens.data import (
    DENSE_FEATURES,
    SPARSE_FEATURES,
    Dataset,
    load,
    totals,
)
from examples.movielens.files import DatasetMissingError
from examples.movielens.model import ModelConfig, build_model, id_list_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torchrec.models.dlrm import DLRM

    from examples.movielens.rows import Rows

EMBEDDING_DIM = 32


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and how fast to train; the defaults were chosen on a part of the training set."""

    seed: int = 0
    epochs: int = 6
    rows_per_batch: int = 1024
    learning_rate: float = 3e-3
    tables_weight_decay: float = 8.0
    progress: bool = True
    """Show a progress bar on standard error where that is a terminal."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What `metrics.json` holds."""

    auc: float
    """Of the trained model in float32, on the test rows."""

    baseline_auc: float
    """Of `user mean + movie mean` on the same rows."""

    train_rows: int
    test_rows: int
    train_seconds: float


def model_config(dataset: Dataset) -> ModelConfig:
    """Size the model to the data."""
    return ModelConfig(
        dense_features=DENSE_FEATURES,
        sparse_features=SPARSE_FEATURES,
        rows_per_table=dataset.rows_per_table,
        embedding_dim=EMBEDDING_DIM,
        dense_arch_layer_sizes=(64, EMBEDDING_DIM),
        over_arch_layer_sizes=(64, 32, 1),
    )


def logits(model: DLRM, config: ModelConfig, rows: Rows) -> torch.Tensor:
    """Return the model's logits [B] for rows of any number."""
    scores: torch.Tensor = model(
        dense_features=torch.from_numpy(rows.dense),
        sparse_features=id_list_features(
            config, torch.from_numpy(rows.lengths), torch.from_numpy(rows.values)
        ),
    )
    return scores.reshape(-1)


def fit(rows: Rows, config: ModelConfig, options: TrainOptions) -> DLRM:
    """Train a model from fresh weights; the same seed and threads give the same weights."""
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    model = build_model(config, torch.device("cpu"))
    tables = list(model.sparse_arch.parameters())
    others = [*model.dense_arch.parameters(), *model.over_arch.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": tables, "weight_decay": options.tables_weight_decay},
            {"params": others, "weight_decay": 1e-4},
        ],
        lr=options.learning_rate,
    )
    steps = -(-len(rows) // options.rows_per_batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    # None shows the bar on a terminal only: in a log it would be one line a step.
    disable = None if options.progress else True
    with tqdm(total=options.epochs * steps, unit="batch", disable=disable) as bar:
        for epoch in range(options.epochs):
            bar.set_description(f"epoch {epoch + 1}/{options.epochs}")
            for index in np.array_split(random.permutation(len(rows)), steps):
                batch = rows.take(index)
                loss = binary_cross_entropy_with_logits(
                    logits(model, config, batch), torch.from_numpy(batch.label)
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}")
    return model.eval()


def baseline(dataset: Dataset) -> NDArray[np.float64]:
    """Score the test rows [B] by user mean + movie mean; who has no mean gets the global one."""
    train, test = dataset.train_ratings, dataset.test_ratings
    score = np.zeros(len(test.user))
    for known, asked in ((train.user, test.user), (train.movie, test.movie)):
        size = int(max(known.max(), asked.max())) + 1
        total, count = totals(known, train.rating.astype(np.float64), size)
        mean = np.where(count > 0, total / np.maximum(count, 1), dataset.mean_rating)
        score += mean[asked]
    return score


def train(output: Path, options: TrainOptions | None = None) -> Metrics:
    """Train, and write `weights.pt`, `config.pkl`, `movies.json` and `metrics.json`.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    dataset = load()
    rows, test = dataset.train(), dataset.test()
    config = model_config(dataset)
    started = time.perf_counter()
    model = fit(rows, config, options or TrainOptions())
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        scores = logits(model, config, test).numpy()
    click = dataset.test_ratings.click
    metrics = Metrics(
        auc=round(auc(click, scores), 5),
        baseline_auc=round(auc(click, baseline(dataset)), 5),
        train_rows=len(rows),
        test_rows=len(test),
        train_seconds=round(seconds, 1),
    )

    output.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), output / "weights.pt")
    (output / "config.pkl").write_bytes(pickle.dumps(config))
    _write_json(output / "movies.json", dataset.catalogue.titles)
    _write_json(output / "metrics.json", asdict(metrics))
    return metrics


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.movielens.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/movielens"))
    parser.add_argument("--seed", type=int, default=TrainOptions.seed)
    parser.add_argument("--epochs", type=int, default=TrainOptions.epochs)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        metrics = train(options.output, TrainOptions(seed=options.seed, epochs=options.epochs))
    except DatasetMissingError as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    sys.stdout.write(
        f"test AUC {metrics.auc:.4f} (user mean + movie mean: {metrics.baseline_auc:.4f}), "
        f"{metrics.train_rows} training rows in {metrics.train_seconds} s, "
        f"{metrics.test_rows} test rows; written to {options.output}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
