"""Asks a running server which of 20 movies a real user will like, with nothing but curl."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.movielens.data import Dataset, load
from examples.movielens.files import DatasetMissingError, Ratings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CANDIDATES = 20
TEST_CANDIDATES = 10
"""At most so many candidates are movies that the user went on to rate."""

BEST = 5


class RankError(RuntimeError):
    """The question could not be asked, or the server did not answer it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A movie, its score and, if the user went on to rate it, the rating."""

    title: str
    score: float
    rating: int | None


def candidates(dataset: Dataset, user: int) -> Ratings:
    """Return a user's first test ratings, then unrated movies drawn with the user as the seed.

    Of the latter the ratings are 0; all have the time at which the test part begins.

    Raises:
        RankError: when there is no such user.
    """
    train, test = dataset.train_ratings, dataset.test_ratings
    of_user = np.flatnonzero(test.user == user)
    if not len(of_user):
        msg = f"--user: received {user}, expected a user of MovieLens-100k, 1 to {test.user.max()}"
        raise RankError(msg)
    rated = of_user[:TEST_CANDIDATES]
    seen = np.concatenate([train.movie[train.user == user], test.movie[of_user]])
    unseen = np.setdiff1d(np.fromiter(dataset.catalogue.titles, dtype=np.int64), seen)
    drawn = np.random.default_rng(user).choice(unseen, CANDIDATES - len(rated), replace=False)
    return Ratings(
        user=np.full(CANDIDATES, user),
        movie=np.concatenate([test.movie[rated], drawn]),
        rating=np.concatenate([test.rating[rated], np.zeros_like(drawn)]),
        timestamp=np.full(CANDIDATES, test.timestamp[of_user[0]]),
    )


def curl_command(server: str, request: Path) -> list[str]:
    """Return the command that sends the file at `request` to the model."""
    return [
        "curl",
        "--data",
        f"@{request}",
        "-H",
        "Content-Type: application/json",
        f"{server.rstrip('/')}/predictions/movielens",
    ]


def ask(command: list[str], wait: int) -> NDArray[np.float64]:
    """Run curl and return the scores [B].

    Args:
        command: from `curl_command`.
        wait: how many seconds to try again while the server or its model is not ready.

    Raises:
        RankError: when there is no curl, no server, or no scores in its answer.
    """
    options = ["--silent", "--show-error", "--write-out", "\n%{http_code}"]
    if wait:
        options += ["--retry-connrefused", "--retry-delay", "1", "--retry", str(wait)]
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours, and there is no shell
            [*command, *options], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        msg = "curl is not installed"
        raise RankError(msg) from error
    if done.returncode:
        # Every attempt wrote a line.
        raise RankError(done.stderr.strip().rpartition("\n")[2])
    body, _, status = done.stdout.rpartition("\n")
    try:
        answer = json.loads(body)
    except json.JSONDecodeError:
        answer = None
    match answer:
        case {"default": [*scores]} if status == "200" and len(scores) == CANDIDATES:
            return np.array(scores, dtype=np.float64)
        case {"message": str(message)}:
            msg = f"the server answered {status}: {message}"
        case _:
            msg = f"the server answered {status}, not {CANDIDATES} scores: {body[:500]}"
    raise RankError(msg)


def rank(server: str, user: int, request: Path, wait: int = 0) -> list[Candidate]:
    """Write the request for a user to the file `request`, send it and return the best first.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
        RankError: when there is no such user, the file cannot be written, or there is no answer.
    """
    dataset = load()
    asked = candidates(dataset, user)
    body = json.dumps(dataset.rows(asked).request()) + "\n"
    try:
        request.parent.mkdir(parents=True, exist_ok=True)
        request.write_text(body, encoding="utf-8")
    except OSError as error:
        msg = f"--request: {request} cannot be written: {error.strerror}"
        raise RankError(msg) from error
    scores = ask(curl_command(server, request), wait)
    return [
        Candidate(
            title=dataset.catalogue.titles[int(asked.movie[i])],
            score=float(scores[i]),
            rating=int(asked.rating[i]) or None,
        )
        for i in np.argsort(-scores, kind="stable")
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.movielens.rank", description=__doc__)
    parser.add_argument("--user", type=int, default=42)
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    parser.add_argument("--request", type=Path, default=Path("build/movielens/request.json"))
    parser.add_argument(
        "--wait", type=int, default=0, help="seconds to wait for a server that is starting"
    )
    options = parser.parse_args(arguments)
    try:
        ranked = rank(options.server, options.user, options.request, options.wait)
    except (DatasetMissingError, RankError) as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1

    table = Table(title=f"The best {BEST} of {CANDIDATES} movies for user {options.user}")
    table.add_column("movie")
    table.add_column("score", justify="right")
    table.add_column("rated later", justify="right")
    for candidate in ranked[:BEST]:
        table.add_row(candidate.title, f"{candidate.score:.3f}", str(candidate.rating or ""))
    console = Console()
    console.print(table)
    command = shlex.join(curl_command(options.server, options.request))
    console.print(command, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
