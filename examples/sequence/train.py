"""Trains the next-movie model and writes all that the archiver needs."""

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

from examples.movielens.files import DatasetMissingError, Ratings, read_ratings
from examples.sequence.data import steps_to_train
from examples.sequence.model import ModelConfig, NextMovie, keyed

if TYPE_CHECKING:
    from collections.abc import Sequence

MOVIES_FOUND = 10


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and how fast to train; the defaults were chosen on a part of the training set."""

    seed: int = 0
    epochs: int = 6
    rows_per_batch: int = 512
    learning_rate: float = 1e-2
    progress: bool = True
    """Show a progress bar on standard error where that is a terminal."""


def model_config(ratings: Ratings) -> ModelConfig:
    """Size the model to the data."""
    return ModelConfig(
        movie_ids=int(ratings.movie.max()) + 1,
        embedding_dim=64,
        movies_read=50,
        movies_found=MOVIES_FOUND,
    )


def fit(ratings: Ratings, config: ModelConfig, options: TrainOptions) -> NextMovie:
    """Train a model from fresh weights; the same seed and threads give the same weights."""
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    model = NextMovie(config, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    rows = steps_to_train(ratings, config.movies_read)
    steps = -(-len(rows) // options.rows_per_batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    # None shows the bar on a terminal only: in a log it would be one line a step.
    disable = None if options.progress else True
    with tqdm(total=options.epochs * steps, unit="batch", disable=disable) as bar:
        for epoch in range(options.epochs):
            bar.set_description(f"epoch {epoch + 1}/{options.epochs}")
            for index in np.array_split(random.permutation(len(rows)), steps):
                history = rows.history.take(index)
                logits = model(
                    keyed(torch.from_numpy(history.lengths), torch.from_numpy(history.values))
                )
                loss = cross_entropy(logits, torch.from_numpy(rows.movie[index]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def train(output: Path, options: TrainOptions | None = None) -> None:
    """Train, and write `weights.pt` and `config.pkl`.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    ratings = read_ratings()
    config = model_config(ratings)
    model = fit(ratings, config, options or TrainOptions())
    output.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), output / "weights.pt")
    (output / "config.pkl").write_bytes(pickle.dumps(config))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.sequence.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/sequence"))
    parser.add_argument("--seed", type=int, default=TrainOptions.seed)
    parser.add_argument("--epochs", type=int, default=TrainOptions.epochs)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    started = time.perf_counter()
    try:
        train(options.output, TrainOptions(seed=options.seed, epochs=options.epochs))
    except DatasetMissingError as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    seconds = time.perf_counter() - started
    sys.stdout.write(f"trained in {seconds:.1f} s; written to {options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
