"""Deep interest network: what of a user's history the candidate item reminds of.

Shapes: B rows, L = 50 items read of a history, D width of an embedding.
"""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from benchmarks.models.seeded import Feature, as_trained, pooled, sequences
from torchrec_handler.simple import Batch, SimpleFactory, sparse

MOST = 50
HISTORY = {"history": Feature(rows=100_000, longest=MOST)}
USER = {
    "user_id": Feature(rows=100_000),
    "age": Feature(rows=1_000),
    "city": Feature(rows=5_000),
    "device": Feature(rows=2_000),
}
ITEM = {"item_id": Feature(rows=100_000), "category": Feature(rows=1_000)}
SHARED = ("user_features", "history")
"""Inputs that belong to the user."""

WIDTH = 32


class Attention(nn.Module):
    """The weight of each item of a history for a candidate, not normalised, as in the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(
            nn.Linear(4 * width, 80), nn.PReLU(), nn.Linear(80, 40), nn.PReLU(), nn.Linear(40, 1)
        )

    def forward(self, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, D] of [B, D], [B, L, D] and [B, L]."""
        q = query.unsqueeze(1).expand_as(keys)
        weights = self.unit(torch.cat([q, keys, q - keys, q * keys], dim=-1)).squeeze(-1)
        weights = weights.masked_fill(~mask, 0.0)
        interest: torch.Tensor = (weights.unsqueeze(-1) * keys).sum(dim=1)
        return interest


class Din(nn.Module):
    """One logit a row."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.history_table = sequences(HISTORY, WIDTH, device)
        self.user_tables = pooled(USER, WIDTH, device)
        self.item_tables = pooled(ITEM, WIDTH, device)
        self.attention = Attention(WIDTH)
        self.layers = nn.Sequential(
            nn.Linear((len(USER) + len(ITEM) + 1) * WIDTH, 200),
            nn.PReLU(),
            nn.Linear(200, 80),
            nn.PReLU(),
            nn.Linear(80, 1),
        )

    def forward(
        self, user: KeyedJaggedTensor, history: KeyedJaggedTensor, item: KeyedJaggedTensor
    ) -> torch.Tensor:
        """[B] of 4, 1 and 2 features."""
        read: JaggedTensor = self.history_table(history)["history"]
        keys = read.to_padded_dense(MOST)
        mask = torch.arange(MOST, device=keys.device) < read.lengths().unsqueeze(1)
        candidate = self.item_tables(item)
        interest = self.attention(candidate["item_id"], keys, mask)
        together = [self.user_tables(user).values(), candidate.values(), interest]
        logits: torch.Tensor = self.layers(torch.cat(together, dim=-1)).squeeze(-1)
        return logits


class Factory(SimpleFactory):
    """With seeded weights."""

    inputs = {  # noqa: RUF012  nobody changes it
        "user_features": sparse(*USER),
        "history": sparse(*HISTORY),
        "item_features": sparse(*ITEM),
    }

    def model(self, device: torch.device) -> nn.Module:
        """On a device; the weights of a history's items are small, as there are many of them."""
        torch.manual_seed(0)
        model = as_trained(Din(device))
        with torch.no_grad():
            model.get_parameter("attention.unit.4.weight").mul_(0.1)
        return model

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`default` [B], the probability of a click."""
        logits = model(batch["user_features"], batch["history"], batch["item_features"])
        return {"default": torch.sigmoid(logits)}
