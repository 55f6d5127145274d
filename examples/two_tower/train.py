"""Trains the towers and writes all that the archiver needs."""

from __future__ import annotations

import argparse
import logging
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from examples.movielens.data import Dataset, load
from examples.movielens.files import DatasetMissingError
from examples.two_tower.data import (
    item_config,
    items,
    movies,
    training_rows,
    user_config,
    users,
)
from examples.two_tower.model import ModelConfig, TwoTower, keyed
from examples.two_tower.recall import Recall, measure
from examples.two_tower.search import FOUND, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from examples.movielens.rows import Bags
    from examples.two_tower.model import TowerConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and how fast to train; the defaults were chosen on a part of the training set."""

    seed: int = 0
    epochs: int = 6
    rows_per_batch: int = 512
    learning_rate: float = 3e-3
    temperature: float = 0.1
    """Cosines are divided by it to get logits."""

    progress: bool = True
    """Show a progress bar on standard error where that is a terminal."""


def model_config(dataset: Dataset) -> ModelConfig:
    """Size the model to the data."""
    return ModelConfig(
        user=user_config(dataset.catalogue),
        item=item_config(dataset.catalogue),
        embedding_dim=32,
        hidden_dim=64,
    )


def keyed_bags(tower: TowerConfig, bags: Bags) -> KeyedJaggedTensor:
    """Return the input of a tower."""
    return keyed(tower, torch.from_numpy(bags.lengths), torch.from_numpy(bags.values))


def fit(dataset: Dataset, config: ModelConfig, options: TrainOptions) -> TwoTower:
    """Train a model to tell the movie that a user likes next from all others.

    There are so few movies that every batch embeds all of them: the loss is a softmax over the
    whole catalogue, and no negatives are drawn.
    """
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    model = TwoTower(config, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    rows, liked = training_rows(dataset)
    catalogue = movies(dataset.catalogue)
    all_items = keyed_bags(config.item, items(dataset.catalogue, catalogue))
    target = torch.from_numpy(np.searchsorted(catalogue, liked))
    steps = -(-len(rows) // options.rows_per_batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    # None shows the bar on a terminal only: in a log it would be one line a step.
    disable = None if options.progress else True
    with tqdm(total=options.epochs * steps, unit="batch", disable=disable) as bar:
        for epoch in range(options.epochs):
            bar.set_description(f"epoch {epoch + 1}/{options.epochs}")
            for index in np.array_split(random.permutation(len(rows)), steps):
                cosines = (
                    model.user(keyed_bags(config.user, rows.take(index))) @ model.item(all_items).T
                )
                loss = cross_entropy(cosines / options.temperature, target[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def evaluate(model: TwoTower, config: ModelConfig, dataset: Dataset) -> Recall:
    """Measure the model in float32, as `evaluate.py` measures the served one."""
    user, catalogue = np.unique(dataset.test_ratings.user), dataset.catalogue
    with torch.inference_mode():
        user_embeddings = model.user(keyed_bags(config.user, users(dataset, user)))
        movie_embeddings = model.item(keyed_bags(config.item, items(catalogue, movies(catalogue))))
    found = nearest(dataset, user, user_embeddings.numpy(), movie_embeddings.numpy())
    return measure(dataset, user, found.movie)


def train(output: Path, options: TrainOptions | None = None) -> Recall:
    """Train, and write `weights.pt` and `config.pkl`.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    dataset = load()
    config = model_config(dataset)
    model = fit(dataset, config, options or TrainOptions())
    output.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), output / "weights.pt")
    (output / "config.pkl").write_bytes(pickle.dumps(config))
    return evaluate(model, config, dataset)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.two_tower.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/two_tower"))
    parser.add_argument("--seed", type=int, default=TrainOptions.seed)
    parser.add_argument("--epochs", type=int, default=TrainOptions.epochs)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    started = time.perf_counter()
    try:
        figure = train(options.output, TrainOptions(seed=options.seed, epochs=options.epochs))
    except DatasetMissingError as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    seconds = time.perf_counter() - started
    sys.stdout.write(
        f"recall@{FOUND} {figure.recall:.4f}, hit rate@{FOUND} {figure.hit_rate:.4f}, "
        f"in {seconds:.1f} s; written to {options.output}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
