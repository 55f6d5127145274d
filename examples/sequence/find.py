"""Asks a running server for next movies, through this project's own client.

Shapes: B rows, K movies found for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import numpy as np
import torch

from examples.sequence.model import keyed
from torchrec_handler.client import Client, encode
from torchrec_handler.errors import AnswerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from examples.movielens.rows import Bags

TIMEOUT_SECONDS = 60


class FindError(RuntimeError):
    """The server could not be reached, or did not answer with movies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The movies that most probably come next, the most probable first."""

    movie: NDArray[np.int64]
    """[B, K] ids."""

    score: NDArray[np.float32]
    """[B, K], their probabilities."""


def find(server: str, history: Bags) -> Found:
    """Ask for the next movies of histories [1, B], in one request.

    Raises:
        FindError: no server, or no movies in its answer.
    """
    url = f"{server.rstrip('/')}/predictions/sequence"
    body = encode(None, keyed(torch.from_numpy(history.lengths), torch.from_numpy(history.values)))
    try:
        with Client(url, timeout=TIMEOUT_SECONDS) as client:
            answer = client.predict(body)
    except (AnswerError, httpx.HTTPError, httpx.InvalidURL) as error:
        message = f"{url}: {error}"
        raise FindError(message) from error
    if not answer.keys() >= {"movies", "scores"}:
        message = f"{url}: answered with {', '.join(answer)}, expected movies and scores"
        raise FindError(message)
    rows = (len(history), -1)
    return Found(
        movie=answer["movies"].astype(np.int64).reshape(rows),
        score=answer["scores"].reshape(rows),
    )
