"""The next-movie model and all it takes to build it, shared by training and by the factory.

The factory's package interns this file, so it imports nothing but torch and torchrec.
Shapes: B rows, L movies read of a history, D width of an embedding, M ids of movies, N ids.
"""

# No `from __future__ import annotations`: in a torch package a dataclass cannot resolve its
# annotations from strings, because its module is not in `sys.modules`.
from dataclasses import dataclass

import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

FEATURE = "history"
"""The ids of the movies that a user rated, newest first."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the factory reads from the package before it has any weights."""

    movie_ids: int
    """M: ids are below it. Movies start at 1, so that 0 stands for none."""

    embedding_dim: int
    """D."""

    movies_read: int
    """L: the model reads so many of a history, the newest."""

    movies_found: int
    """K: an answer holds so many movies a row."""


class NextMovie(torch.nn.Module):
    """Attention over the newest movies of a history, then one logit for every movie."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        tables_device: torch.device | None = None,
    ) -> None:
        """Build it in float32, with fresh weights.

        Args:
            config: sizes.
            device: where the dense part lives.
            tables_device: where the table lives, `device` when not given; `meta` allocates none.
        """
        super().__init__()
        width = config.embedding_dim
        self._movies_read = config.movies_read
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=f"t_{FEATURE}",
                    feature_names=[FEATURE],
                    num_embeddings=config.movie_ids,
                    embedding_dim=width,
                )
            ],
            device=tables_device or device,
        )
        self.dropout = torch.nn.Dropout(0.2)
        self.recency = torch.nn.Parameter(torch.zeros(config.movies_read, width, device=device))
        self.attention = torch.nn.Linear(width, 1, device=device)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, width, device=device),
            torch.nn.ReLU(),
            torch.nn.Linear(width, config.movie_ids, device=device),
        )

    def forward(self, history: KeyedJaggedTensor) -> torch.Tensor:
        """Return the logits [B, M] of the movie that comes next."""
        sequence = self.tables(history)[FEATURE]
        # [B, L, D]: what is older than the newest L movies is cut off, shorter histories get zeros.
        movies = self.dropout(sequence.to_padded_dense(self._movies_read))
        position = torch.arange(self._movies_read, device=movies.device)
        is_missing = position >= sequence.lengths().unsqueeze(1)
        attention = self.attention(torch.tanh(movies + self.recency)).squeeze(2)
        attention = attention.masked_fill(is_missing, torch.finfo(attention.dtype).min).softmax(1)
        logits: torch.Tensor = self.layers((attention.unsqueeze(2) * movies).sum(dim=1))
        return logits


def keyed(lengths: torch.Tensor, values: torch.Tensor) -> KeyedJaggedTensor:
    """Join lengths [B] and values [N], both int32."""
    return KeyedJaggedTensor(keys=[FEATURE], values=values, lengths=lengths.reshape(-1))
